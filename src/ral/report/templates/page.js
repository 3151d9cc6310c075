"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("js");

  // What lasts while a page follows a run and reloads itself; a browser may forbid it to files.
  const kept = {
    get: (name) => { try { return sessionStorage.getItem(`ral-${name}`); } catch { return null; } },
    set: (name, value) => { try { sessionStorage.setItem(`ral-${name}`, value); } catch { /* it lasts until the next load */ } },
  };

  const theme = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const showTheme = () => theme.setAttribute("aria-pressed", String(dark()));
  if (kept.get("theme")) root.dataset.theme = kept.get("theme");
  theme.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    kept.set("theme", root.dataset.theme);
    showTheme();
  });
  system.addEventListener("change", showTheme);
  showTheme();

  // A page that follows a run loads again until one without this mark has taken its place, or no news has come for long.
  const live = document.getElementById("live");
  if (live) {
    const [every, longest] = [15, 3600];
    const pause = document.getElementById("pause");
    const showPause = () => pause.setAttribute("aria-pressed", String(kept.get("paused") === "yes"));
    pause.addEventListener("click", () => {
      kept.set("paused", kept.get("paused") === "yes" ? "no" : "yes");
      showPause();
    });
    showPause();
    setInterval(() => {
      const age = Date.now() / 1000 - Number(live.dataset.written);
      if (age > longest) {
        live.querySelector("[role=status]").textContent = "No news for an hour: the run may have been stopped.";
      } else if (kept.get("paused") !== "yes" && !document.hidden) location.reload();
    }, every * 1000);
  }

  for (const radio of document.querySelectorAll("input[name=overlay]")) {
    radio.addEventListener("change", () => { root.dataset.overlay = radio.value; });
  }
  const tokens = document.getElementById("tokens");
  if (tokens) {
    tokens.addEventListener("change", () => { root.toggleAttribute("data-tokens", tokens.checked); });
  }
  const strength = document.getElementById("strength");
  if (strength) {
    strength.addEventListener("input", () => root.style.setProperty("--overlay", strength.value / 100));
  }

  const exhibits = [...document.querySelectorAll(".exhibit")];
  for (const radio of document.querySelectorAll("input[name=filter]")) {
    radio.addEventListener("change", () => {
      const wanted = radio.value.split(" ");
      for (const exhibit of exhibits) {
        exhibit.hidden = radio.value !== "all" && !wanted.includes(exhibit.dataset.outcome);
      }
      const count = exhibits.filter((exhibit) => !exhibit.hidden).length;
      document.getElementById("shown").textContent = `${count} images shown`;
    });
  }

  // Reading values off a chart: the nearest point of each line, by pointer or by arrow keys.
  const store = document.getElementById("chart-data");
  const charts = store ? JSON.parse(store.textContent) : {};
  const readers = new Map();
  const nearest = (xs, x) => xs.reduce((best, value, i) => (Math.abs(value - x) < Math.abs(xs[best] - x) ? i : best), 0);
  for (const plot of document.querySelectorAll(".plot")) {
    const { range: [low, high], area: [left, right], lines } = charts[plot.dataset.chart];
    const svg = plot.querySelector("svg");
    const cursor = svg.querySelector(".cursor");
    const outputs = [...plot.parentElement.querySelectorAll("output")];
    const steps = [...new Set(lines.flatMap((line) => line.x))].sort((a, b) => a - b);
    let at = steps.length - 1;
    const read = (x) => {
      at = nearest(steps, x);
      const place = left + ((steps[at] - low) / (high - low || 1)) * (right - left);
      cursor.setAttribute("x1", place);
      cursor.setAttribute("x2", place);
      cursor.setAttribute("visibility", "visible");
      lines.forEach((line, i) => { outputs[i].textContent = line.y[nearest(line.x, steps[at])]; });
    };
    readers.set(plot.dataset.chart, read);
    const clear = () => {
      cursor.setAttribute("visibility", "hidden");
      for (const output of outputs) output.textContent = "";
    };
    plot.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const unit = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
      read(low + ((unit - left) / (right - left)) * (high - low));
    });
    plot.addEventListener("pointerleave", clear);
    plot.addEventListener("blur", clear);
    plot.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!move) return;
      event.preventDefault();
      read(steps[Math.min(Math.max(at + move, 0), steps.length - 1)]);
    });
  }

  // A slider over training: one frame of the stepper is shown, and the charts beneath read their values at the same step.
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  for (const stepper of document.querySelectorAll(".stepper")) {
    const slider = stepper.querySelector(".steps input");
    const said = stepper.querySelector(".steps output");
    const play = stepper.querySelector(".play");
    const steps = slider.dataset.steps.split(" ");
    const films = [...stepper.querySelectorAll(".watched")];
    const frames = (films.length ? films : [stepper]).map((film) => [...film.querySelectorAll(".frame")]);
    const show = () => {
      for (const film of frames) film.forEach((frame, i) => frame.classList.toggle("current", i === Number(slider.value)));
      said.textContent = `step ${steps[slider.value]}`;
      slider.setAttribute("aria-valuetext", said.textContent);
      for (const chart of slider.dataset.charts.split(" ")) readers.get(chart)?.(Number(steps[slider.value]));
    };
    let timer = 0;
    const stop = () => {
      clearInterval(timer);
      timer = 0;
      play.textContent = "Play";
    };
    play.addEventListener("click", () => {
      if (timer) return stop();
      if (slider.value === slider.max) slider.value = 0;
      show();
      play.textContent = "Pause";
      timer = setInterval(() => {
        slider.value = Number(slider.value) + 1;
        show();
        if (slider.value === slider.max) stop();
      }, still.matches ? 1500 : 600);
    });
    slider.addEventListener("input", () => { stop(); show(); });
    for (const radio of stepper.querySelectorAll("input[name=watched]")) {
      radio.addEventListener("change", () => films.forEach((film, i) => film.classList.toggle("first", i === Number(radio.value))));
    }
    show();
  }

  // The table of an evaluation's items: what is shown follows from the filter, the search and the page.
  const table = document.getElementById("items");
  if (table) {
    const items = JSON.parse(document.getElementById("item-data").textContent);
    const size = Number(table.dataset.page);
    const find = document.getElementById("find");
    const [previous, next, place] = ["previous", "next", "place"].map((id) => document.getElementById(id));
    const node = (tag, text, name = "", direction = "") => {
      const made = document.createElement(tag);
      made.textContent = text;
      if (name) made.className = name;
      if (direction) made.dir = direction;
      return made;
    };
    const row = (item) => {
      const line = document.createElement("tr");
      const head = node("th", "");
      head.scope = "row";
      head.append(node("bdi", item.id));
      if (item.image) {
        const image = node("img", "");
        image.src = item.image;
        image.alt = "";
        head.append(image);
      }
      const asked = node("td", "", "text");
      asked.append(node("span", item.question, "", "auto"), node("b", item.solution, "", "auto"));
      line.append(head, asked, ...item.answers.map((answer) => {
        const given = node("td", "", "text");
        const colour = { right: " good", wrong: " bad" }[answer.state] || "";
        const state = answer.score === null ? answer.state : `${answer.state} ${answer.score}`;
        given.append(node("span", state, "badge" + colour));
        if (answer.truncated) given.append(node("span", "truncated", "badge bad"));
        given.append(node("b", answer.prediction ?? "", "", "auto"), node("span", answer.completion, "wrote", "auto"));
        if (answer.tokens !== null) given.append(node("span", `${answer.tokens} tokens`, "fine"));
        return given;
      }));
      return line;
    };
    let page = 0;
    const show = (wanted) => {
      const state = document.querySelector("input[name=state]:checked").value;
      const words = find.value.toLowerCase();
      const said = (item) => item.answers.flatMap((answer) => [answer.prediction, answer.completion]);
      const texts = (item) => [item.id, item.question, item.solution, ...said(item)].join("\n");
      const chosen = items.filter((item) =>
        (state === "all" || item.tags.includes(state)) &&
        (!words || texts(item).toLowerCase().includes(words)));
      page = Math.min(Math.max(wanted, 0), Math.max(Math.ceil(chosen.length / size) - 1, 0));
      const shown = chosen.slice(page * size, (page + 1) * size);
      table.tBodies[0].replaceChildren(...shown.map(row));
      const start = page * size;
      place.textContent = shown.length ? `${start + 1} to ${start + shown.length} of ${chosen.length}` : "none";
      previous.disabled = page === 0;
      next.disabled = (page + 1) * size >= chosen.length;
    };
    previous.addEventListener("click", () => show(page - 1));
    next.addEventListener("click", () => show(page + 1));
    find.addEventListener("input", () => show(0));
    for (const radio of document.querySelectorAll("input[name=state]")) radio.addEventListener("change", () => show(0));
    show(0);
  }

  for (const button of document.querySelectorAll(".copy")) {
    button.addEventListener("click", async () => {
      const code = button.parentElement.querySelector("code");
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {
        // Without permission to copy, the selected text is one keystroke away.
        getSelection().selectAllChildren(code);
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
  }

  addEventListener("beforeprint", () => {
    for (const detail of document.querySelectorAll("details")) detail.open = true;
  });
})();
