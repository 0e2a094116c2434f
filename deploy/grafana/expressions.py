"""The dashboard's expressions. `$run` stands for the runs that the viewer chose, `$__…` for what Grafana puts in."""

from typing import Final

RATE: Final = "[$__rate_interval]"
UNSEEN: Final = "out of sight"
RUNNING: Final = "running"
STATUSES: Final = (UNSEEN, "interrupted", "failed", "diverged", "completed", RUNNING)
"""What a run may be. Of a run that was taken up again, the later in this order holds."""


def of_runs(metric: str, **labels: str) -> str:
    """Return the selector of a metric of the chosen runs."""
    matchers = ['run=~"$run"', *(f'{name}="{value}"' for name, value in labels.items())]
    return f"isograd_{metric}{{{', '.join(matchers)}}}"


def gauge(metric: str, by: str = "run") -> str:
    """Return a gauge by these labels, wherever it was scraped: a run that is taken up again is at another port."""
    return f"max by ({by}) ({of_runs(metric)})"


def last(metric: str) -> str:
    """Return the last known value of a gauge, also after the end of the run."""
    return f"max by (run) (last_over_time({of_runs(metric)}[$__range]))"


def rate(metric: str, by: str = "run") -> str:
    """Return a counter's growth per second by these labels."""
    return f"sum by ({by}) (rate({of_runs(metric)}{RATE}))"


def quantile(share: float) -> str:
    """Return a quantile of the durations of each phase."""
    return f"histogram_quantile({share}, {rate('round_seconds_bucket', 'run, phase, le')})"


def age(metric: str) -> str:
    """Return the seconds since a point in time."""
    return f"time() - {gauge(metric)}"


def ready() -> str:
    """Return how many workers compute."""
    return f"max by (run) ({of_runs('workers', state='ready')})"


def time_left() -> str:
    """Return the seconds to the last round, at the pace of the last minutes; nothing where there is no progress."""
    progress = of_runs("progress_ratio")
    return f"max by (run) ((1 - {progress}) / (deriv({progress}[5m]) > 0))"


def starts() -> str:
    """Return when each run's coordinator began its first round, in milliseconds since the epoch, with the run's sizes."""
    info, start = (f"last_over_time({of_runs(metric)}[$__range])" for metric in ("run_info", "run_start_timestamp_seconds"))
    return f"max by (run, parameters, shards) ({info} * on (job, instance, run) group_left () {start}) * 1000"


def compute_time() -> str:
    """Return how long each worker computes in a round, in the mean."""
    total, rounds = (f"rate({of_runs(f'worker_compute_seconds_{part}')}{RATE})" for part in ("sum", "count"))
    return f"{total} / ({rounds} > 0)"


def slowest() -> str:
    """Return how many times longer than the others in the mean each run's slowest worker computes; nothing for one worker."""
    worst, others = f"max by (run) ({compute_time()})", f"(count by (run) ({compute_time()}) - 1 > 0)"
    return f"{worst} / ((sum by (run) ({compute_time()}) - {worst}) / {others})"


def status() -> str:
    """Return the place in STATUSES of what each run is; of one that is not scraped any more, what it was last known to be."""
    running = of_runs("run_status", status="running")
    ended = {name: place for place, name in enumerate(STATUSES) if name not in (UNSEEN, RUNNING)}
    last = [f"last_over_time({of_runs('run_status', status=name)}[$__range]) * {place}" for name, place in ended.items()]
    unseen = f"last_over_time({running}[$__range]) * 0"
    return f"(max by (run) ({running}) == 1) * {len(STATUSES) - 1} or max by (run) ({' or '.join([unseen, *last])})"
