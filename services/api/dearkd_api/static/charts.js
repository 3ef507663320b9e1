"use strict";
// Curves with axes, a logarithmic scale and values under the pointer: each `data-chart` names what it draws.
// The answer: {x_label, tables: [{x, series: [{name, values, scale?}]}], marks: [{x, label}]}; tables may have other xs.
{
  const colours = () => getComputedStyle(document.documentElement);
  const LINES = ["--line-1", "--line-2", "--line-3", "--line-4", "--line-5", "--line-6", "--line-7", "--line-8"];
  const short = (value) => value == null ? "–" : Number(value.toPrecision(4)).toString();

  function joined(tables) {
    const filled = tables.filter((table) => table.x.length);
    return filled.length ? uPlot.join(filled.map((table) => [table.x, ...table.series.map((one) => one.values)])) : null;
  }

  function options(answer, series, width, log, style) {
    const ink = style.getPropertyValue("--soft"), grid = { stroke: style.getPropertyValue("--line"), width: 1 };
    const axis = { stroke: ink, grid, ticks: grid, font: "11px system-ui", labelFont: "11px system-ui" };
    return {
      width, height: 280,
      scales: { x: { time: false }, y: log ? { distr: 3 } : {} },
      series: [
        { label: answer.x_label },
        ...series.map((one, i) => ({
          label: one.name.replaceAll("_", " "), stroke: style.getPropertyValue(LINES[i % LINES.length]), width: 1.6,
          dash: i >= LINES.length ? [6, 3] : undefined, spanGaps: true, points: { show: false }, value: (_, y) => short(y),
        })),
      ],
      axes: [{ ...axis, label: answer.x_label, labelSize: 18 }, { ...axis, size: 64, values: (_, ticks) => ticks.map((t) => t == null ? "" : short(t)) }],
      hooks: { draw: [(plot) => marks(plot, answer.marks || [], ink)] },
    };
  }

  function marks(plot, list, ink) {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.strokeStyle = ctx.fillStyle = ink;
    ctx.font = `${11 * devicePixelRatio}px system-ui`;
    ctx.textAlign = "left";
    ctx.setLineDash([4, 4]);
    for (const mark of list) {
      const x = Math.round(plot.valToPos(mark.x, "x", true));
      if (x < bbox.left || x > bbox.left + bbox.width) continue;
      ctx.beginPath(); ctx.moveTo(x, bbox.top); ctx.lineTo(x, bbox.top + bbox.height); ctx.stroke();
      ctx.fillText(mark.label, x + 4, bbox.top + 12 * devicePixelRatio);
    }
    ctx.restore();
  }

  function draw(figure) {
    let plot = null, answer = null, log = false, said = "";
    const caption = document.createElement("figcaption");
    const toggle = Object.assign(document.createElement("button"), { type: "button", textContent: "Logarithmic" });
    toggle.setAttribute("aria-pressed", "false");
    caption.append(figure.dataset.title, " ", toggle);
    const place = document.createElement("div");

    function show() {
      const data = joined(answer.tables);
      figure.hidden = !data;
      if (!data) return;
      if (!caption.isConnected) figure.append(caption, place);
      const series = answer.tables.filter((table) => table.x.length).flatMap((table) => table.series);
      const drawn = log ? [data[0], ...data.slice(1).map((ys) => ys.map((y) => y > 0 ? y : null))] : data;
      if (plot && plot.series.length === drawn.length) { plot.setData(drawn); return; }
      build(drawn, series);
    }

    function build(drawn, series) {
      const shown = plot ? plot.series.slice(1).map((one) => one.show) : [];
      if (plot) plot.destroy();
      plot = new uPlot(options(answer, series, place.clientWidth || 600, log, colours()), drawn, place);
      shown.forEach((is, i) => { if (!is && i + 1 < plot.series.length) plot.setSeries(i + 1, { show: false }); });
    }

    const again = () => { if (!answer) return; if (plot) { const old = plot; plot = null; old.destroy(); } show(); };
    toggle.addEventListener("click", () => { log = !log; toggle.setAttribute("aria-pressed", String(log)); again(); });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
    new ResizeObserver(() => { if (plot && place.clientWidth) plot.setSize({ width: place.clientWidth, height: 280 }); }).observe(figure);

    async function load() {
      try {
        const response = await fetch(figure.dataset.chart, { headers: { Accept: "application/json" } });
        const text = response.ok ? await response.text() : said;
        if (text && text !== said) { said = text; answer = JSON.parse(text); show(); }
      } catch (error) {
        // The page's own polling says that the server is out of reach.
      }
    }
    load();
    if (figure.dataset.live) setInterval(() => { if (!document.hidden) load(); }, 1000 * Number(figure.dataset.live));
  }

  document.querySelectorAll("[data-chart]").forEach(draw);
}
