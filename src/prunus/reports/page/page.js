"use strict";
/* What moves on the page: charts in the colours of the theme, sorting, the budget, keys. All data are in #data. */
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const spoken = document.getElementById("spoken");
  const shown = new Map(); // element -> { option, chart }
  const PAPER = 690; // CSS pixels between the margins of a sheet
  const escape = echarts.format.encodeHTML;

  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  /* Options name colours as var(--name); here they become what the theme says. */
  function coloured(value) {
    if (typeof value === "string") {
      return value.startsWith("var(") ? colour(value.slice(4, -1)) : value;
    }
    if (Array.isArray(value)) {
      return value.map(coloured);
    }
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, coloured(inner)]));
    }
    return value;
  }

  /* The end of a name says more than its beginning. */
  function tail(name, room) {
    const letters = [...name];
    return letters.length > room ? `\u2026${letters.slice(1 - room).join("")}` : name;
  }

  function dressed(option, width) {
    const made = coloured(option);
    const narrow = width < 520;
    const text = { color: colour("--text") };
    const axis = {
      axisLabel: { color: colour("--text") },
      nameTextStyle: { color: colour("--soft") },
      axisLine: { lineStyle: { color: colour("--line") } },
      splitLine: { lineStyle: { color: colour("--rule") } },
    };
    const merged = (own) => {
      const both = { ...axis, ...own };
      for (const key of Object.keys(axis)) {
        both[key] = { ...axis[key], ...(own[key] || {}) };
      }
      if (own.type === "value") {
        both.splitNumber = narrow ? 3 : 5;
        both.axisLabel.hideOverlap = true;
      }
      if (both.axisLabel.width) {
        const width = narrow ? 92 : both.axisLabel.width;
        const room = Math.floor(width / 6.2);
        const margin = both.axisLabel.align === "left" ? width + 4 : 8;
        both.axisLabel = { ...both.axisLabel, width, margin, formatter: (name) => tail(name, room) };
      }
      return both;
    };
    const each = (found, change) => (Array.isArray(found) ? found.map(change) : change(found));
    made.xAxis = each(made.xAxis, merged);
    made.yAxis = each(made.yAxis, merged);
    made.grid = each(made.grid, (grid) => {
      const wide = grid.left > 120 ? { left: grid.left - 104 } : {};
      const room = grid.right > 60 ? { right: 70 } : {};
      return narrow ? { ...grid, ...wide, ...room } : grid;
    });
    made.series = made.series.map((s) => (s.label ? { ...s, label: { color: text.color, ...s.label } } : s));
    made.legend = made.legend ? { textStyle: text, ...made.legend } : undefined;
    if (!made.color) {
      delete made.color;
    }
    made.animation = false;
    if (!narrow && width !== PAPER) {
      const saved = { type: "svg", name: "prunus", title: "Save as SVG" };
      made.toolbox = { right: 0, top: 0, itemSize: 12, feature: { saveAsImage: saved }, iconStyle: { borderColor: colour("--soft") } };
    }
    made.textStyle = { ...text, fontFamily: getComputedStyle(document.body).fontFamily };
    made.tooltip = {
      confine: true,
      backgroundColor: colour("--raised"),
      borderColor: colour("--line"),
      textStyle: { color: colour("--text"), fontSize: 13 },
      extraCssText: "max-width: 26rem; white-space: normal; overflow-wrap: anywhere;",
      ...made.tooltip,
    };
    if (made.tooltip.trigger === "item") {
      made.tooltip.formatter = (parameters) => {
        const found = parameters.data && parameters.data.tip;
        return found ? found.map(escape).join("<br>") : "";
      };
    }
    return made;
  }

  function draw(element, option, wide) {
    const before = shown.get(element);
    if (before) {
      before.chart.dispose();
    }
    element.style.height = `${option.height}px`;
    const width = wide || element.clientWidth;
    const chart = echarts.init(element, null, { renderer: "svg", width });
    chart.setOption(dressed(option, width));
    // So that paper of any width can scale it.
    element.querySelector("svg").setAttribute("viewBox", `0 0 ${width} ${option.height}`);
    shown.set(element, { option, chart });
    return chart;
  }

  /* Arrow keys go through the values that have something to say, which is also spoken. */
  function steered(element) {
    let place = -1;
    element.addEventListener("keydown", (event) => {
      const move = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const held = shown.get(element);
      if (!held || (!move && event.key !== "Escape")) {
        return;
      }
      event.preventDefault();
      if (!move) {
        place = -1;
        held.chart.dispatchAction({ type: "hideTip" });
        spoken.textContent = "";
        return;
      }
      const places = [];
      held.chart.getOption().series.forEach((series, seriesIndex) => {
        (series.data || []).forEach((one, dataIndex) => {
          if (one && one.value !== null && (one.tip || series.type === "line")) {
            places.push({ seriesIndex, dataIndex, tip: one.tip, at: one.value || one });
          }
        });
      });
      if (element.id === "chart-posterior") {
        places.sort((a, b) => a.at[0] - b.at[0]);
      }
      if (element.dataset.chart === "network") {
        places.splice(0, places.length, ...places.filter((p) => p.seriesIndex === 0));
      }
      if (!places.length) {
        return;
      }
      place = (place + move + places.length) % places.length;
      const { seriesIndex, dataIndex, tip, at } = places[place];
      held.chart.dispatchAction({ type: "showTip", seriesIndex, dataIndex });
      const pixel = held.chart.convertToPixel({ seriesIndex }, at);
      const around = element.closest(".tall");
      if (around && pixel && Number.isFinite(pixel[1])) {
        around.scrollTop = pixel[1] - around.clientHeight / 2;
      }
      spoken.textContent = (tip || (Array.isArray(at) ? at.map(String) : [String(at)])).join("; ");
    });
  }

  function sortable(table) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const falling = head.classList.contains("number");
        const first = falling ? "descending" : "ascending";
        const other = falling ? "ascending" : "descending";
        const order = head.getAttribute("aria-sort") === first ? other : first;
        heads.forEach((one) => one.setAttribute("aria-sort", one === head ? order : "none"));
        const value = (row) => {
          const cell = row.cells[column];
          const text = cell.dataset.value === undefined ? cell.textContent.trim() : cell.dataset.value;
          return falling ? Number.parseFloat(text) : text;
        };
        const sign = order === "ascending" ? 1 : -1;
        const compared = (a, b) => {
          const [x, y] = [value(a), value(b)];
          return sign * (falling ? (Number.isNaN(x) ? -1 : x) - (Number.isNaN(y) ? -1 : y) : x.localeCompare(y, undefined, { numeric: true }));
        };
        table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compared));
      });
    });
  }

  function choose(button) {
    const name = button.dataset.group;
    document.querySelectorAll(".choose").forEach((one) => one.setAttribute("aria-pressed", String(one === button)));
    const title = document.getElementById("chosen-group");
    const element = document.getElementById("chart-posterior");
    title.textContent = name;
    title.hidden = element.hidden = false;
    draw(element, data.groups[name]);
  }

  function budget(slider) {
    const offer = data.offers[Number(slider.value)];
    const share = (part, whole) => `${((100 * part) / whole).toFixed(1)} %`;
    const loss = offer.loss === null ? "" : `, measured loss of what goes ${offer.loss.toPrecision(3)}`;
    const own = offer.own ? " (this run's plan)" : "";
    const macs = `${offer.macs.toLocaleString("en")} MACs (${share(offer.macs, data.dense.macs)})`;
    const params = `${offer.params.toLocaleString("en")} parameters (${share(offer.params, data.dense.params)})`;
    const says = `${macs}, ${params}${loss}${own}`;
    document.getElementById("budget-says").textContent = says;
    slider.setAttribute("aria-valuetext", says);
    const bars = Object.entries(data.units).map(([name, units]) => {
      const kept = Object.hasOwn(offer.kept, name) ? offer.kept[name] : units;
      const told = `${kept} of ${units}`;
      return { value: (100 * kept) / units, tip: [name, `${told} stay`], label: { formatter: told } };
    });
    const held = shown.get(document.getElementById("chart-budget"));
    held.option.series[0].data = bars;
    held.chart.setOption({ series: [{ data: bars }] });
    const price = document.getElementById("chart-price");
    if (price) {
      const point = [[(100 * offer.macs) / data.dense.macs, offer.loss]];
      const curve = shown.get(price);
      curve.option.series[1].data = point;
      curve.chart.setOption({ series: [{}, { data: point }] });
    }
  }

  function redraw(wide) {
    shown.forEach(({ option }, element) => draw(element, option, wide));
  }

  function theme(dark) {
    root.dataset.theme = dark ? "dark" : "light";
    const button = document.getElementById("theme");
    button.setAttribute("aria-pressed", String(dark));
    redraw();
  }

  const preferred = matchMedia("(prefers-color-scheme: dark)");
  theme(preferred.matches);
  preferred.addEventListener("change", (event) => theme(event.matches));
  document.getElementById("theme").addEventListener("click", () => theme(root.dataset.theme !== "dark"));

  document.querySelectorAll("[data-chart]").forEach((element) => {
    if (data.charts[element.dataset.chart]) {
      draw(element, data.charts[element.dataset.chart]);
    }
  });
  document.querySelectorAll(".chart").forEach(steered);
  document.querySelectorAll("table.sortable").forEach(sortable);
  const buttons = document.querySelectorAll(".choose");
  buttons.forEach((button) => button.addEventListener("click", () => choose(button)));
  if (buttons.length) {
    choose(buttons[0]);
  }
  const slider = document.getElementById("budget");
  if (slider) {
    slider.addEventListener("input", () => budget(slider));
    budget(slider);
  }

  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth !== width && !matchMedia("print").matches) {
      width = innerWidth;
      redraw();
    }
  });
  addEventListener("beforeprint", () => {
    document.querySelectorAll("details").forEach((one) => (one.open = true));
    root.dataset.theme = "light";
    redraw(PAPER);
  });
  addEventListener("afterprint", () => theme(document.getElementById("theme").getAttribute("aria-pressed") === "true"));
  root.dataset.ready = "true";
})();
