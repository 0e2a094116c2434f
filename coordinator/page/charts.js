// A chart: curves that uPlot draws, a legend with their values, and a table of the same for those who don't see them.
const charts = (() => {
  "use strict";
  const HEIGHT = 210;
  const FONT = "12px system-ui, sans-serif";
  const STEPS = [...Array(12).keys()].flatMap((power) => [1, 2, 5].map((base) => base * 10 ** power)); // rounds are whole
  const ROWS = 200; // of a table; a curve of more points has every so many in it

  /** Make an element with attributes and children; text is always text, never markup. */
  function element(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  /** Running totals over the columns, so that areas lie on top of each other. */
  function stacked(columns) {
    const totals = [];
    for (const column of columns) {
      const below = totals.at(-1);
      totals.push(below ? column.map((value, place) => value + below[place]) : column);
    }
    return totals;
  }

  const decades = (_, splits) => splits.map((value) => (Math.abs(Math.log10(value) % 1) < 1e-6 ? value : null));

  const positive = (column) => column.map((value) => (value > 0 ? value : null));

  class Chart {
    /**
     * what: { title, x, series: [{ name, colour }], show, stack, group }, where `x` names what the points are numbered by,
     * `show` writes a value, and charts of a `group` share their cursor.
     */
    constructor(host, what) {
      this.what = what;
      this.points = [];
      this.columns = what.series.map(() => []);
      this.logarithmic = false;
      this.plot = null;
      this.build(host);
      new ResizeObserver(() => this.resize()).observe(this.area);
    }

    build(host) {
      const { title, series, x, stack } = this.what;
      this.values = series.map(() => element("span", { class: "value" }));
      this.where = element("span", { class: "where quiet" });
      const legend = series.map((one, place) =>
        element("li", {}, element("span", { class: `swatch swatch-${one.colour}` }), `${one.name} `, this.values[place]));
      this.area = element("div", { class: "plot", role: "slider", tabindex: "0", "aria-label": `${title}: step through the points` });
      this.area.addEventListener("keydown", (event) => this.key(event));
      this.area.addEventListener("blur", () => this.leave());
      this.empty = element("p", { class: "empty quiet" });
      this.table = element("table", {});
      const scroll = element("div", { class: "scroll tall", tabindex: "0", role: "group", "aria-label": `${title}, as a table` }, this.table);
      this.details = element("details", {}, element("summary", {}, "Table", element("span", { class: "unseen" }, ` of ${title}, by ${x}`)), scroll);
      this.details.addEventListener("toggle", () => this.tabulate());
      const caption = element("figcaption", {}, element("h3", {}, title), element("ul", { class: "legend" }, ...legend, element("li", {}, this.where)));
      host.append(element("figure", stack ? { class: "wide" } : {}, caption, this.area, this.empty, this.details));
    }

    /** Show these points and columns, or that the run has none; `over` tells whether it still may get some. */
    update(points, columns, over) {
      this.points = points;
      this.columns = columns;
      const bare = points.length === 0;
      this.area.hidden = this.details.hidden = bare;
      this.empty.hidden = !bare;
      this.empty.textContent = over ? `No ${this.what.x} was completed.` : `Drawn when the first ${this.what.x} is over.`;
      if (bare) return;
      if (this.plot) this.plot.setData(this.data());
      else this.draw();
      this.read();
      this.tabulate();
    }

    /** Draw anew: the scale, the theme or the size of the text is another. */
    draw() {
      if (this.plot) this.plot.destroy();
      this.plot = null;
      if (this.points.length) this.plot = new uPlot(this.options(), this.data(), this.area);
    }

    scale(logarithmic) {
      this.logarithmic = logarithmic;
      this.draw();
    }

    data() {
      const columns = this.what.stack ? stacked(this.columns).reverse() : this.columns;
      return [this.points, ...(this.logarithmic ? columns.map(positive) : columns)];
    }

    options() {
      const { series, show, stack, group } = this.what;
      const axis = {
        stroke: colour("quiet"), font: FONT,
        ticks: { show: false },
      };
      const grid = { stroke: colour("grid"), width: 1 };
      const wide = (values) => Math.max(...(values ?? []).map((value) => (value ?? "").length), 3) * 7 + 14;
      const drawn = (stack ? [...series].reverse() : series).map((one) => ({
        label: one.name, stroke: colour(one.colour), width: stack ? 0 : 2, fill: stack ? colour(one.colour) : undefined,
        points: { size: 5, fill: colour(one.colour), ...(stack && { show: () => this.points.length === 1 }) },
      }));
      return {
        width: this.area.clientWidth, height: HEIGHT, padding: [8, 12, 0, 0], legend: { show: false }, series: [{}, ...drawn],
        scales: {
          x: { time: false, range: (_, least, most) => [least, Math.max(most, least + 1)] },
          y: { distr: this.logarithmic ? 3 : 1, range: stack ? (_, __, most) => [0, most * 1.1] : undefined },
        },
        axes: [
          { ...axis, size: 28, gap: 6, incrs: STEPS, grid,
            values: (_, splits) => splits.map(format.whole) },
          { ...axis, gap: 6, space: 36, size: (_, values) => wide(values), grid: this.logarithmic ? { ...grid, filter: decades } : grid,
            values: (_, splits) => splits.map((value) => (value === null ? "" : show(value, 3))) },
        ],
        cursor: { y: false, drag: { x: false, y: false }, sync: { key: group }, points: { size: 8 } },
        hooks: { setCursor: [() => this.read()] },
      };
    }

    resize() {
      const width = this.area.clientWidth;
      if (this.plot && width && width !== this.plot.width) this.plot.setSize({ width, height: HEIGHT });
    }

    /** The point under the cursor; the last one where there is none. */
    get place() {
      return this.plot?.cursor.idx ?? this.points.length - 1;
    }

    /** Write the values under the cursor into the legend, and tell them to screen readers. */
    read() {
      const place = Math.min(this.place, this.points.length - 1);
      const texts = this.columns.map((column) => this.what.show(column[place]));
      texts.forEach((text, series) => { this.values[series].textContent = text; });
      this.where.textContent = `${this.what.x} ${format.whole(this.points[place])}`;
      const told = this.what.series.map((one, series) => `${one.name} ${texts[series]}`).join(", ");
      const state = { min: 0, max: this.points.length - 1, now: place, text: `${this.where.textContent}: ${told}` };
      for (const [key, value] of Object.entries(state)) this.area.setAttribute(`aria-value${key}`, value);
    }

    key(event) {
      const last = this.points.length - 1;
      const page = Math.max(1, Math.round(last / 10));
      const steps = {
        ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -page, PageUp: page, Home: -last, End: last,
      };
      const step = steps[event.key];
      if (step === undefined || !this.plot) return;
      event.preventDefault();
      const place = Math.min(last, Math.max(0, this.place + step));
      this.plot.setCursor({ left: this.plot.valToPos(this.points[place], "x"), top: 1 });
    }

    leave() {
      if (this.plot) this.plot.setCursor({ left: -10, top: -10 });
    }

    /** Fill the table, if it is open. */
    tabulate() {
      if (!this.details.open || !this.points.length) return;
      const every = Math.ceil(this.points.length / ROWS);
      const heads = [this.what.x, ...this.what.series.map((one) => one.name)];
      const rows = this.points.flatMap((point, place) => {
        if (place % every && place !== this.points.length - 1) return [];
        const cells = this.columns.map((column) => element("td", {}, this.what.show(column[place])));
        return [element("tr", {}, element("th", { scope: "row" }, format.whole(point)), ...cells)];
      });
      const head = element("tr", {}, ...heads.map((text) => element("th", { scope: "col" }, text)));
      this.table.replaceChildren(element("thead", {}, head), element("tbody", {}, ...rows));
    }
  }

  return { Chart, element };
})();
