// The page: which charts it has, and asking for news.
(() => {
  "use strict";
  const { Chart } = charts;
  const { SPLITS, byId, write } = panels;
  const POLL_MS = 1000;
  const MOST_MS = 30_000; // between two questions to a server that does not answer
  const PATIENCE_MS = 10_000; // for an answer

  /** Charts by what they need, made when it is first known: whether rows are classified, whether some are held out. */
  class Curves {
    constructor() {
      this.drawn = [];
      this.logarithmic = byId("logarithmic");
      this.logarithmic.addEventListener("change", () => {
        this.drawn.filter((one) => one.mayBeLogarithmic).forEach((one) => one.chart.scale(this.logarithmic.checked));
      });
      matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.drawn.forEach((one) => one.chart.draw()));
    }

    make(state) {
      const splits = state.sizes.validation_rows ? SPLITS : SPLITS.slice(0, 1);
      const { classified } = state.plan;
      const ofEpochs = (title, column, show, mayBeLogarithmic) => this.add("error-charts", { mayBeLogarithmic,
        what: { title, series: splits, x: "epoch", show, group: "epochs" },
        points: (now) => now.epochs.epoch,
        columns: (now) => splits.map((split) => now.epochs[split.name]?.[column] ?? []),
      });
      const ofRounds = (host, title, series, columns, show, more = {}) => this.add(host, { ...more,
        what: { title, series, x: "round", show, group: "rounds", stack: more.stack },
        points: (now) => now.rounds.round,
        columns: (now) => columns.map((column) => now.rounds[column]),
      });
      ofEpochs("Loss by epoch", "loss", format.number, true);
      if (classified) ofEpochs("Error rate by epoch", "error_rate", format.percent, false);
      ofRounds("error-charts", "Loss by round", SPLITS.slice(0, 1), ["loss"], format.number, { mayBeLogarithmic: true });
      ofEpochs("Mean absolute error by epoch", "mean_absolute_error", format.number, true);
      if (!classified) ofEpochs("Mean squared error by epoch", "mean_squared_error", format.number, true);
      const phases = ["compute", "reduce", "update"];
      ofRounds("round-charts", "Time of a round by phase", phases.map((name) => ({ name, colour: name })), phases, format.seconds, { stack: true });
      ofRounds("round-charts", "Gradient norm", [{ name: "norm", colour: "plain" }], ["gradient_norm"], format.number);
      ofRounds("round-charts", "Learning rate", [{ name: "rate", colour: "plain" }], ["learning_rate"], format.number);
    }

    add(host, one) {
      this.drawn.push({ ...one, chart: new Chart(byId(host), one.what) });
    }

    show(state) {
      if (!state.plan) return;
      if (!this.drawn.length) this.make(state);
      for (const one of this.drawn) one.chart.update(one.points(state), one.columns(state), Boolean(state.summary));
    }
  }

  const curves = new Curves();

  function statusOf(state) {
    if (state.summary) return state.summary.status;
    return state.plan ? "running" : "starting";
  }

  function show(state) {
    panels.showHeader(state, statusOf(state));
    panels.showProgress(state);
    panels.showOutcome(state);
    panels.showTiles(state);
    curves.show(state);
    panels.showWorkers(state);
    panels.showNotices(state);
    write(byId("job"), state.plan?.job ?? "");
  }

  /** The state as the run tells it now; null where nobody answers. */
  async function ask() {
    try {
      const answer = await fetch("state.json", { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
      return answer.ok ? await answer.json() : null;
    } catch {
      return null;
    }
  }

  /** Ask for news until the run is over; ask a server that does not answer less and less often. */
  async function follow(given) {
    let shown = given;
    let pause = POLL_MS;
    while (!shown.summary) {
      await new Promise((resolve) => { setTimeout(resolve, pause); });
      const told = await ask();
      if (told && told.run !== shown.run) location.reload(); // another run has the port now, and may need other charts
      pause = told ? POLL_MS : Math.min(MOST_MS, pause * 2);
      shown = told ?? shown;
      showContact(shown, told !== null);
    }
  }

  function showContact(state, answered) {
    byId("contact").hidden = answered;
    if (answered) {
      show(state);
      return;
    }
    panels.showHeader(state, "lost");
    write(byId("contact"), `No answer from the run since ${format.moment(state.now)}: it is over, or out of reach. `
      + "This is what it told last; a run that ends leaves this page as report.html in its directory.");
  }

  const source = byId("state");
  const given = JSON.parse(source.textContent);
  show(given);
  if (source.dataset.live === "true") follow(given);
})();
