// What the page says in words, figures and tables.
const panels = (() => {
  "use strict";
  const { element } = charts;
  const QUIET_SECONDS = 10; // without a round, after which that is told
  const STATUS = {
    starting: "getting ready", running: "running", completed: "completed", diverged: "diverged", failed: "failed",
    interrupted: "interrupted", lost: "out of contact",
  };
  const ENDINGS = { completed: "is completed", diverged: "diverged", failed: "failed", interrupted: "was interrupted" };
  const SPLITS = [{ name: "train", colour: "train" }, { name: "validation", colour: "validation" }];
  const byId = (id) => document.getElementById(id);
  const last = (column) => column?.at(-1) ?? null;

  /** Set a text; only if it is another, so that a selection stays and screen readers are not told again. */
  function write(target, text) {
    if (target.textContent !== text) target.textContent = text;
  }

  function rows(list, pairs) {
    const kept = pairs.filter(Boolean);
    while (list.children.length > kept.length) list.lastElementChild.remove();
    while (list.children.length < kept.length) list.append(element("div", {}, element("dt"), element("dd"), element("dd", { class: "quiet" })));
    kept.forEach(([name, value, note = ""], place) => {
      const [term, main, aside] = list.children[place].children;
      write(term, name);
      write(main, value);
      write(aside, note);
      aside.hidden = !note;
    });
  }

  function showHeader(state, status) {
    const { run, sizes, plan, now } = state;
    document.title = `${run}: ${STATUS[status]}`;
    write(byId("name"), run);
    write(byId("status"), STATUS[status]);
    byId("status").dataset.status = byId("bar").dataset.status = status;
    write(byId("sizes"), plan ? [
      `${format.count(sizes.rows, "row")}${sizes.validation_rows ? `, ${format.whole(sizes.validation_rows)} to validate` : ""}`,
      `${format.count(sizes.inputs, "input")}, ${format.count(sizes.outputs, "output")}, ${format.count(sizes.parameters, "parameter")}`,
      `${format.count(sizes.shards, "shard")}`, `${format.count(plan.rounds_per_epoch, "round")} an epoch`,
    ].join(" · ") : "The workers start and read their rows.");
    write(byId("footer"), `${plan ? `Started ${format.moment(plan.timestamp)}, last` : "Last"} told ${format.moment(now)}.`);
  }

  function showProgress(state) {
    const { plan, round } = state;
    const most = plan?.most_rounds;
    byId("bar").hidden = !most;
    if (!plan) return;
    const of = (limit) => (limit ? ` of ${format.whole(limit)}` : "");
    const epoch = Math.max(1, Math.ceil(round / plan.rounds_per_epoch));
    write(byId("done"), `Epoch ${format.whole(epoch)}${of(most && Math.ceil(most / plan.rounds_per_epoch))}, round ${format.whole(round)}${of(most)}`);
    write(byId("left"), timeLeft(state));
    if (most) byId("bar").value = round / most;
  }

  function timeLeft({ summary, plan, round, timestamp, now }) {
    if (summary) return `took ${format.seconds(summary.seconds.total)}`;
    if (timestamp === null) return "";
    const silent = now - timestamp;
    if (silent > QUIET_SECONDS) return `last round ${format.clock(silent)} ago`;
    const done = round - plan.rounds_done;
    if (!plan.most_rounds || done <= 0) return `${format.clock(now - plan.timestamp)} so far`;
    const left = ((timestamp - plan.timestamp) / done) * (plan.most_rounds - round);
    return `${format.clock(left)} left`;
  }

  /** The figures that tell most, the ones of the held-out rows first. */
  function showTiles(state) {
    const { epochs, rounds, crew, summary, plan, sizes } = state;
    const beside = (column, show) => {
      const train = last(epochs.train[column]);
      const validation = last(epochs.validation?.[column]);
      return validation === null ? [show(train), "training"] : [show(validation), `validation; training ${show(train, 3)}`];
    };
    const round = ["compute", "reduce", "update"].reduce((total, phase) => total + last(rounds[phase]), 0);
    const speed = last(epochs.rows_per_second) ?? (plan && round ? sizes.rows / plan.rounds_per_epoch / round : null);
    const none = epochs.epoch.length === 0;
    const classified = last(epochs.train.error_rate) !== null;
    // The outcome has the errors of the weights that were kept; those of the last epoch beside them would confuse.
    const errors = summary ? [] : [
      none ? ["Loss", format.number(last(rounds.loss)), "last round"] : ["Loss", ...beside("loss", format.number)],
      classified && ["Error rate", ...beside("error_rate", format.percent)],
      !none && !classified && ["Mean absolute error", ...beside("mean_absolute_error", format.number)],
    ];
    rows(byId("tiles"), [
      ...errors,
      ["Speed", format.whole(summary?.rows_per_second ?? speed), "rows/s"],
      ["Round", format.seconds(summary?.round_seconds.p50 ?? (round || null)),
        summary ? `median; 99% within ${format.seconds(summary.round_seconds.p99)}` : "last"],
      state.evaluate_seconds !== null && ["Evaluation", format.seconds(state.evaluate_seconds), "after each epoch"],
      ["Workers", format.whole(crew.workers), crew.lost ? `${format.whole(crew.lost)} lost` : "none lost"],
      checkpointTile(state),
    ]);
  }

  function checkpointTile({ checkpoint, now, summary }) {
    if (!checkpoint) return ["Last checkpoint", "none yet"];
    const round = `round ${format.whole(checkpoint.round)}`;
    const took = `took ${format.seconds(checkpoint.seconds)}`;
    if (summary) return ["Last checkpoint", round, took];
    const age = now - checkpoint.timestamp;
    return ["Last checkpoint", age < 1 ? "just now" : `${format.clock(age)} ago`, `${round}; ${took}`];
  }

  function table(target, heads, lines) {
    const head = element("tr", {}, ...heads.map((text) => element("th", { scope: "col" }, text)));
    const body = lines.map(([name, ...cells]) =>
      element("tr", {}, element("th", { scope: "row" }, name), ...cells.map((cell) => element("td", {}, cell))));
    target.replaceChildren(element("thead", {}, head), element("tbody", {}, ...body));
  }

  function showWorkers({ crew, workers, lost, summary }) {
    const usual = summary ? "there at the end" : "at work";
    write(byId("crew"), [
      format.count(crew.workers, "worker"), crew.loading && `${format.whole(crew.loading)} loading their rows`,
      crew.lost && `${format.whole(crew.lost)} lost`, crew.moved && `${format.count(crew.moved, "shard")} moved`,
      crew.recomputed && `${format.count(crew.recomputed, "slice")} computed again`,
    ].filter(Boolean).join(", "));
    const present = workers.map((worker) => [
      `${worker.worker}`, format.whole(worker.shards), format.seconds(worker.last), format.seconds(worker.mean),
      worker.straggler ? element("strong", { class: "straggler" }, "straggler") : usual,
    ]);
    const gone = lost.map((worker) => [`${worker.worker}`, format.DASH, format.DASH, format.DASH, `lost in round ${format.whole(worker.round)}`]);
    table(byId("workers"), ["Worker", "Shards", "Last computed", "Mean", "State"], [...present, ...gone]);
  }

  function showNotices({ notices }) {
    byId("no-notices").hidden = notices.length > 0;
    const list = byId("notices");
    if ([...list.children].map((item) => item.textContent).join("\n") === notices.join("\n")) return;
    list.replaceChildren(...notices.map((notice) => element("li", {}, notice)));
  }

  function showOutcome({ summary, plan }) {
    byId("outcome").hidden = !summary;
    if (!summary) return;
    const why = summary.reason === summary.status ? "" : `: ${summary.reason}`;
    write(byId("ending"), `The run ${ENDINGS[summary.status]} after ${format.count(summary.rounds, "round")}${why}.`);
    const splits = SPLITS.filter((split) => summary[split.name]);
    const classified = summary.train && summary.train.error_rate !== null;
    byId("errors").parentElement.hidden = !splits.length;
    table(byId("errors"), ["Split", "Loss", "Mean abs. error", "Mean sq. error", ...(classified ? ["Error rate"] : [])], splits.map(({ name }) => {
      const { loss, mean_absolute_error: absolute, mean_squared_error: squared, error_rate: rate } = summary[name];
      return [name, ...[loss, absolute, squared].map((value) => format.number(value)), ...(classified ? [format.percent(rate)] : [])];
    }));
    rows(byId("facts"), [
      ["Epochs", format.whole(summary.epochs), summary.kept_epoch ? `weights of epoch ${format.whole(summary.kept_epoch)} kept` : ""],
      ["Rows trained", format.whole(summary.rows_trained), `of ${format.whole(summary.rows_expected)}`],
      ["Time", format.seconds(summary.seconds.training), `to train; ${format.seconds(summary.seconds.startup)} to start`],
      ["Began", format.moment(plan.timestamp)],
      ["SHA-256 of the weights", summary.weights_digest],
      ["Computed with", Object.entries(summary.fingerprint).map((pair) => pair.join(" ")).join(", ")],
    ]);
  }

  return { SPLITS, byId, write, showHeader, showProgress, showTiles, showOutcome, showWorkers, showNotices };
})();
