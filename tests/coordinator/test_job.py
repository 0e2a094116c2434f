import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from coordinator.job import JobSpec, dump_job, load_job, parse_job, parse_override
from coordinator.optimizers import DEFAULTS
from worker.errors import JobError
from worker.model import DEFAULT_LOSS, DEFAULT_OUTPUT

Document = dict[str, dict[str, Any]]
MINIMAL = """
[job]
name = "small"
[data]
train = "rows.parquet"
label = "y"
[model]
task = "classification"
[training]
epochs = 2
"""


def document(**sections: dict[str, Any]) -> Document:
    base = tomllib.loads(MINIMAL)
    return base | {name: base.get(name, {}) | keys for name, keys in sections.items()}


def without(section: str, key: str | None = None) -> Document:
    base: dict[str, Any] = document()
    table_of_key = base if key is None else base[section]
    del table_of_key[key or section]
    return base


def message_of(error: JobError) -> str:
    """The message, once it is sure to be what a user can act on: one line that begins with the key."""
    message = str(error)
    assert message == f"{error.key}: {error.problem}"
    assert len(message.splitlines()) == 1
    return message


# The key that the message must begin with, what it must tell, and the tables that are at fault.
UNKNOWN = [
    ("optimiser", "unknown section; did you mean 'optimizer'", document(optimiser={"name": "sgd"})),
    ("zebra", "Known are job, data, model, optimizer, training, stopping, ", document(zebra={})),
    ("training.epoch", "unknown key; did you mean 'epochs'", document(training={"epoch": 3})),
    ("job.nmae", "did you mean 'name'", {**document(), "job": {"nmae": "small"}}),
    ("data.lable", "did you mean 'label'", {**without("data", "label"), "data": {"train": "t", "lable": "y"}}),
    ("model.hiden", "did you mean 'hidden'", document(model={"hiden": [3]})),
    ("data.columns.age.scael", "did you mean 'scale'", document(data={"columns": {"age": {"scael": "minmax"}}})),
    ("data.columns.age.missing", "did you mean 'median'?", document(data={"columns": {"age": {"missing": "medain"}}})),
    ("data.columns.age.parts", "names hour more than once", document(data={"columns": {"age": {"parts": ["hour", "hour"]}}})),
    ("data.columns.age.parts[1]", "did you mean 'hour'?", document(data={"columns": {"age": {"parts": ["days", "hours"]}}})),
    ("data.columns.age.categories", "must be a whole number", document(data={"columns": {"age": {"categories": "x"}}})),
    ("data.columns.age", "must be a table of keys", document(data={"columns": {"age": 3}})),
    ("data.delimiter", "one ASCII character", document(data={"delimiter": "::"})),
    ("data.decimal", "accepted", document(data={"decimal": ";"})),
    ("data.decimal", "as data.delimiter is", document(data={"decimal": ","})),
    ("optimizer.schedule.nam", "did you mean 'name'", document(optimizer={"schedule": {"nam": "step"}})),
    ("stopping.patients", "did you mean 'patience'", document(stopping={"patients": 3})),
    ("metrics.prot", "did you mean 'port'", document(metrics={"prot": 9})),
    ("workers.counts", "did you mean 'count'", document(workers={"counts": 2})),
    ("model.activation", "'rleu' is not accepted; accepted: 'sigmoid'", document(model={"activation": "rleu"})),
    ("model.activation", "did you mean 'relu'?", document(model={"activation": "rleu"})),
    ("model.task", "did you mean 'classification'?", document(model={"task": "clasification"})),
    ("optimizer.name", "did you mean 'adam'?", document(optimizer={"name": "adaam"})),
    ("optimizer.schedule.name", "did you mean 'cosine'?", document(optimizer={"schedule": {"name": "cosin"}})),
    ("data.scale", "did you mean 'standard'?", document(data={"scale": "standart"})),
    ("checkpoint.every_epoch", "did you mean 'every_epochs'", document(checkpoint={"every_epoch": 2})),
    ("job.reproducible", "did you mean 'strict'?", document(job={"reproducible": "stricct"})),
    ("training.keep", "accepted: 'best', 'last'", document(training={"keep": "first"})),
]
MISSING = [
    ("job", "this section is missing", without("job")),
    ("data", "this section is missing", without("data")),
    ("model", "this section is missing", without("model")),
    ("job.name", "this key is missing", without("job", "name")),
    ("data.train", "this key is missing", without("data", "train")),
    ("data.label", "this key is missing", without("data", "label")),
    ("model.task", "this key is missing", without("model", "task")),
]
TYPES = [
    ("training.epochs", 'a whole number, got the text "5"', document(training={"epochs": "5"})),
    ("training.epochs", "a whole number, got the true/false true", document(training={"epochs": True})),
    ("training.epochs", "a whole number, got the number 5.5", document(training={"epochs": 5.5})),
    ("training.batch_size", "a whole number, got the number 5.0", document(training={"batch_size": 5.0})),
    ("job.seed", "a whole number, got the number 1.5", document(job={"seed": 1.5})),
    ("job.name", "text, got the number 3", document(job={"name": 3})),
    ("job.name", "text, got the true/false true", document(job={"name": True})),
    ("optimizer.learning_rate", 'a number, got the text "0.1"', document(optimizer={"learning_rate": "0.1"})),
    ("optimizer.learning_rate", "a number, got the true/false true", document(optimizer={"learning_rate": True})),
    ("stopping.all_correct", "true or false, got the number 1", document(stopping={"all_correct": 1})),
    ("stopping.all_correct", "true or false, got the text", document(stopping={"all_correct": "yes"})),
    ("model.hidden", "a list, got the number 3", document(model={"hidden": 3})),
    ("model.hidden[1]", 'a whole number, got the text "4"', document(model={"hidden": [3, "4"]})),
    ("model.hidden[0]", "a whole number, got the true/false true", document(model={"hidden": [True]})),
    ("model.bias", "true or false, got the number 0", document(model={"bias": 0})),
    ("data.label", "a column name or a list of them, got the number 3", document(data={"label": 3})),
    ("data.features", 'a list, got the text "x"', document(data={"features": "x"})),
    ("data.validation", "a share of the rows or a path, got the true/false", document(data={"validation": True})),
    ("data.validation", "a share of the rows or a path, got the list", document(data={"validation": [0.2]})),
    ("data", "a table of keys, got the text", {**document(), "data": "rows.parquet"}),
    ("data", "a table of keys, got the list", {**document(), "data": [{"train": "t"}]}),
    ("optimizer.schedule", "a table of keys, got the text", document(optimizer={"schedule": "cosine"})),
    ("metrics.sd_dir", "text, got the number 1", document(metrics={"sd_dir": 1})),
]
RANGES = [
    ("job.name", "'' can't name a folder", document(job={"name": ""})),
    ("job.name", "'a/b' can't name a folder", document(job={"name": "a/b"})),
    ("job.name", "'..' can't name a folder", document(job={"name": ".."})),
    ("job.name", "can't name a folder", document(job={"name": "two\nlines"})),
    ("job.name", "can't name a folder", document(job={"name": "n" * 101})),
    ("job.seed", "from 0 to 2^63 - 1, got -1", document(job={"seed": -1})),
    ("job.seed", "from 0 to 2^63 - 1", document(job={"seed": 2**63})),
    ("data.shards", "from 1 to 8,192, got 0", document(data={"shards": 0})),
    ("data.shards", "from 1 to 8,192, got 8193", document(data={"shards": 8193})),
    ("data.window_rows", "at least 1, got 0", document(data={"window_rows": 0})),
    ("data.window_rows", 'no use with shuffle = "full"', document(data={"window_rows": 9, "shuffle": "full"})),
    ("data.memory_limit", 'a size above 0 such as "400 MB"', document(data={"memory_limit": "much"})),
    ("data.memory_limit", "got 0", document(data={"memory_limit": 0})),
    ("data.memory_limit", "got '0 MB'", document(data={"memory_limit": "0 MB"})),
    ("data.label", "is empty", document(data={"label": []})),
    ("data.label", "is empty", document(data={"label": ""})),
    ("data.features", "is empty", document(data={"features": []})),
    *[("data.validation", "above 0 and below 1", document(data={"validation": share})) for share in (0, 0.0, 1, 1.5, -0.1)],
    ("model.hidden[1]", "0 units is too few", document(model={"hidden": [3, 0]})),
    ("model.huber_delta", "above 0, got 0.0", document(model={"huber_delta": 0})),
    ("model.huber_delta", "above 0", document(model={"huber_delta": float("inf")})),
    ("model.l2", "0 or more, got -0.1", document(model={"l2": -0.1})),
    ("model.l2", "0 or more", document(model={"l2": float("inf")})),
    ("model.dropout", "at least 0 and below 1, got 1.0", document(model={"hidden": [3], "dropout": 1.0})),
    ("model.dropout", "at least 0 and below 1, got -0.5", document(model={"hidden": [3], "dropout": -0.5})),
    ("model.initial_weights", "neither one of small, xavier, he, zeros", document(model={"initial_weights": "ones"})),
    *[
        ("optimizer.learning_rate", "must be above 0", document(optimizer={"learning_rate": rate}))
        for rate in (0.0, -0.1, float("inf"), float("nan"))
    ],
    ("optimizer.clip_norm", "above 0, got 0.0", document(optimizer={"clip_norm": 0.0})),
    ("optimizer.clip_norm", "above 0, got nan", document(optimizer={"clip_norm": float("nan")})),
    ("optimizer.momentum", "below 1, got 1.0", document(optimizer={"name": "momentum", "momentum": 1})),
    ("optimizer.momentum", "at least 0", document(optimizer={"name": "nesterov", "momentum": -0.1})),
    ("optimizer.decay", "below 1", document(optimizer={"name": "rmsprop", "decay": 1.0})),
    ("optimizer.beta1", "below 1", document(optimizer={"name": "adam", "beta1": 1.0})),
    ("optimizer.beta2", "below 1", document(optimizer={"name": "adamw", "beta2": 1.0})),
    ("optimizer.epsilon", "0 or more", document(optimizer={"name": "adagrad", "epsilon": -1e-8})),
    ("optimizer.weight_decay", "0 or more", document(optimizer={"name": "adamw", "weight_decay": float("inf")})),
    ("optimizer.schedule.warmup_epochs", "0 or more", document(optimizer={"schedule": {"warmup_epochs": -1}})),
    ("optimizer.schedule.step_epochs", "at least 1", document(optimizer={"schedule": {"step_epochs": 0}})),
    ("optimizer.schedule.factor", "at most 1, got 1.5", document(optimizer={"schedule": {"factor": 1.5}})),
    ("optimizer.schedule.factor", "above 0", document(optimizer={"schedule": {"factor": 0}})),
    ("optimizer.schedule.final_ratio", "from 0 to 1", document(optimizer={"schedule": {"final_ratio": 1.1}})),
    ("training.batch_size", "at least 1, got 0", document(training={"batch_size": 0})),
    ("training.epochs", "at least 1, got 0", document(training={"epochs": 0})),
    ("training.rounds", "at least 1, got -1", document(training={"rounds": -1})),
    ("stopping.patience", "at least 1, got 0", document(stopping={"patience": 0})),
    ("stopping.max_seconds", "above 0, got 0.0", document(stopping={"max_seconds": 0})),
    ("stopping.target_loss", "got nan", document(stopping={"target_loss": float("nan")})),
    ("metrics.port", "from 0 to 65535, got 65536", document(metrics={"port": 65536})),
    ("metrics.port", "from 0 to 65535, got -1", document(metrics={"port": -1})),
    ("metrics.linger_seconds", "0 or more", document(metrics={"linger_seconds": -1})),
    ("metrics.linger_seconds", "0 or more", document(metrics={"linger_seconds": float("inf")})),
    ("metrics.linger_scrapes", "0 or more, got -1", document(metrics={"linger_scrapes": -1, "linger_seconds": 1})),
    ("metrics.linger_scrapes", "metrics.linger_seconds, which must be more", document(metrics={"linger_scrapes": 1})),
    ("metrics.address", "'example.com' is no IP address", document(metrics={"address": "example.com"})),
    ("metrics.address", "allow_insecure = true", document(metrics={"address": "0.0.0.0"})),
    ("metrics.address", "metrics.certificate and metrics.key", document(metrics={"address": "::"})),
    ("metrics.address", "allow_insecure = true", document(metrics={"address": "10.1.2.3", "token_file": "t"})),
    ("metrics.certificate", "needs metrics.key", document(metrics={"certificate": "c.pem"})),
    ("metrics.certificate", "needs metrics.key", document(metrics={"key": "k.pem"})),
    ("metrics.client_ca", "needs metrics.certificate", document(metrics={"client_ca": "ca.pem"})),
    ("metrics.pushgateway", "must be a URL such as", document(metrics={"pushgateway": "127.0.0.1:9091"})),
    ("metrics.pushgateway", "must be a URL such as", document(metrics={"pushgateway": "http://"})),
    ("metrics.pushgateway", "must be a URL such as", document(metrics={"pushgateway": "http://host:x"})),
    ("metrics.pushgateway", "without user name and password", document(metrics={"pushgateway": "http://me:secret@host"})),
    ("workers.count", "at least 1, got 0", document(workers={"count": 0})),
    ("workers.placement", "did you mean 'spread'?", document(workers={"placement": "spreads"})),
    ("workers.min", "at least 1, got 0", document(workers={"min": 0})),
    ("workers.max", "at least 1, got -1", document(workers={"max": -1})),
    ("workers.deadline_seconds", "above 0, got 0.0", document(workers={"deadline_seconds": 0})),
    ("checkpoint.every_epochs", "at least 1, got 0", document(checkpoint={"every_epochs": 0})),
    ("checkpoint.keep", "at least 1, got 0", document(checkpoint={"keep": 0})),
    (
        "workers.cpus",
        "at least 0.0001, the smallest part of a CPU that Ray sets aside, got 1e-05",
        document(workers={"cpus": 1e-5}),
    ),
    ("workers.wait_seconds", "above 0, got 0.0", document(workers={"wait_seconds": 0})),
    ("workers.wait_seconds", "above 0, got 0.0", document(workers={"wait_seconds": 0})),
]
CONTRADICTIONS = [
    *[
        ("model.loss", "cross_entropy needs classes", document(model={"task": task, "loss": "cross_entropy"}))
        for task in ("binary", "regression")
    ],
    *[
        (
            "model.output",
            "takes the logarithm of probabilities",
            document(model={"task": task, "loss": loss, "output": output}),
        )
        for task, loss in (("classification", "cross_entropy"), ("binary", "binary_cross_entropy"))
        for output in ("identity", "relu", "tanh")
    ],
    (
        "model.output",
        "takes the logarithm of probabilities, which 'identity' does not give",
        document(model={"task": "regression", "loss": "binary_cross_entropy"}),
    ),
    ("model.output", "always 1; use sigmoid", document(model={"task": "binary", "output": "softmax"})),
    ("model.dropout", "model.hidden is empty", document(model={"dropout": 0.5})),
    ("optimizer.momentum", "sgd has no momentum; leave it out", document(optimizer={"momentum": 0.9})),
    ("optimizer.weight_decay", "use adamw; for L2", document(optimizer={"name": "adam", "weight_decay": 0.1})),
    ("training.epochs", "nothing would end the run", without("training")),
    (
        "optimizer.schedule.name",
        "cosine falls over a known number of rounds",
        {
            **without("training"),
            "stopping": {"max_seconds": 5},
            "optimizer": {"schedule": {"name": "cosine"}},
        },
    ),
    (
        "stopping.all_correct",
        "use stopping.target_loss",
        document(model={"task": "regression"}, stopping={"all_correct": True}),
    ),
    (
        "data.class_weights",
        "a regression has no classes",
        document(data={"class_weights": "balanced"}, model={"task": "regression"}),
    ),
    ("data.scale_target", "learns classes", document(data={"scale_target": "standard"})),
    (
        "data.scale_target",
        "needs targets from 0 to 1",
        document(
            data={"scale_target": "standard"}, model={"task": "regression", "output": "sigmoid", "loss": "binary_cross_entropy"}
        ),
    ),
    ("workers.count", "5 workers can't share 4 shards", document(data={"shards": 4}, workers={"count": 5})),
    ("workers.max", "5 workers can't share 4 shards", document(data={"shards": 4}, workers={"max": 5})),
    ("workers.count", "use either count, or min and max", document(workers={"count": 2, "min": 1})),
    ("workers.count", "use either count, or min and max", document(workers={"count": 2, "max": 3})),
    (
        "workers.placement",
        "'strict_pack' is for a fixed number",
        document(workers={"min": 1, "max": 3, "placement": "strict_pack"}),
    ),
    ("workers.min", "3 is more than workers.max = 2", document(workers={"min": 3, "max": 2})),
]


@pytest.mark.parametrize(("key", "told", "bad"), [*UNKNOWN, *MISSING, *TYPES, *RANGES, *CONTRADICTIONS])
def test_a_bad_job_is_refused_in_one_line_that_begins_with_the_key(key: str, told: str, bad: Document) -> None:
    with pytest.raises(JobError) as refused:
        parse_job(bad)

    assert refused.value.key == key
    assert told in message_of(refused.value)


@pytest.mark.parametrize(
    "good",
    [
        document(model={"loss": "binary_cross_entropy"}),
        document(model={"output": "sigmoid"}),
        document(model={"output": "identity", "loss": "squared_error"}),
        document(model={"task": "regression", "output": "sigmoid", "loss": "binary_cross_entropy"}),
        document(data={"validation": "held_out.parquet", "label": ["a", "b*"]}),
        document(optimizer={"learning_rate": 1, "schedule": {"name": "cosine"}}),
        document(training={"rounds": 3}),
        {**without("training"), "stopping": {"patience": 1}},
        document(data={"shards": 8}, workers={"count": 8}),
    ],
)
def test_what_looks_unusual_but_makes_sense_is_taken(good: Document) -> None:
    assert isinstance(parse_job(good), JobSpec)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"[job\nname = 1", "is not valid TOML"),
        (b"[job]\nname = 'a'\nname = 'b'", "is not valid TOML"),
        (b"\xff\xfe[job]", "can't be read: it is not UTF-8 text"),
        (None, "can't be read: No such file or directory; give the path of a job file"),
    ],
)
def test_a_file_that_is_no_job_is_refused_by_its_path(tmp_path: Path, content: bytes | None, told: str) -> None:
    path = tmp_path / "job.toml"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(JobError) as refused:
        load_job(path, {})

    assert refused.value.key == str(path)
    assert told in message_of(refused.value)


def test_a_folder_is_no_job_file(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="can't be read: Is a directory"):
        load_job(tmp_path, {})


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("training.epochs=5", "training.epochs", 5),
        ("optimizer.learning_rate=1e-3", "optimizer.learning_rate", 0.001),
        ("stopping.all_correct=true", "stopping.all_correct", True),
        ("model.hidden=[3, 4]", "model.hidden", [3, 4]),
        ("model.activation=tanh", "model.activation", "tanh"),
        ('model.activation="tanh"', "model.activation", "tanh"),
        ("data.train=a=b/c d.parquet", "data.train", "a=b/c d.parquet"),
        ("data.label = kind", "data.label", "kind"),
        ("job.name=", "job.name", ""),
        ("optimizer.schedule.name=cosine", "optimizer.schedule.name", "cosine"),
    ],
)
def test_an_override_is_read_as_toml_or_else_as_text(text: str, key: str, value: object) -> None:
    assert parse_override(text) == (key, value)


@pytest.mark.parametrize("text", ["", "training.epochs", "epochs=5", "=5"])
def test_an_override_without_key_or_value_is_refused(text: str) -> None:
    with pytest.raises(JobError, match=r"must have the form section\.key=value") as refused:
        parse_override(text)

    assert message_of(refused.value).startswith(f"--set {text}")


def test_overrides_replace_and_add_keys_at_any_depth(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(MINIMAL)
    texts = ["training.epochs=9", "optimizer.schedule.name=step", "optimizer.schedule.factor=0.1", "metrics.port=0"]

    job = load_job(path, dict(map(parse_override, texts)))

    assert (job.training.epochs, job.optimizer.schedule.name, job.optimizer.schedule.factor) == (9, "step", 0.1)
    assert job.metrics is not None
    assert load_job(path, {}).metrics is None


@pytest.mark.parametrize(
    ("overrides", "key", "told"),
    [
        ({"job.name.first": "x"}, "job.name.first", "'name' is no table"),
        ({"training.epoch": 3}, "training.epoch", "did you mean 'epochs'"),
        ({"training.epochs": "many"}, "training.epochs", 'a whole number, got the text "many"'),
        ({"model.dropout": 0.5}, "model.dropout", "model.hidden is empty"),
    ],
)
def test_an_override_is_validated_like_the_file(tmp_path: Path, overrides: dict[str, object], key: str, told: str) -> None:
    path = tmp_path / "job.toml"
    path.write_text(MINIMAL)

    with pytest.raises(JobError) as refused:
        load_job(path, overrides)

    assert refused.value.key == key
    assert told in message_of(refused.value)


def test_paths_are_relative_to_the_job_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "jobs").mkdir()
    path = tmp_path / "jobs" / "job.toml"
    content = document(
        data={"train": "rows/*.parquet", "validation": "../held.csv"},
        model={"initial_weights": "w.safetensors"},
        metrics={"sd_dir": "sd", "certificate": "c.pem", "key": "k.pem", "client_ca": "ca.pem", "token_file": "t"},
    )
    path.write_text(tomli_w.dumps(content))
    monkeypatch.chdir(tmp_path)

    job = load_job(Path("jobs/job.toml"), {})

    assert Path(job.data.train) == tmp_path / "jobs" / "rows" / "*.parquet"
    assert Path(str(job.data.validation)).resolve() == tmp_path / "held.csv"
    assert Path(job.model.initial_weights or "") == tmp_path / "jobs" / "w.safetensors"
    assert job.metrics is not None
    found = [job.metrics.sd_dir, job.metrics.certificate, job.metrics.key, job.metrics.client_ca, job.metrics.token_file]
    assert found == [str(tmp_path / "jobs" / name) for name in ("sd", "c.pem", "k.pem", "ca.pem", "t")]


@pytest.mark.parametrize("kept", ["/elsewhere/rows.parquet", "s3://bucket/rows.parquet"])
def test_absolute_paths_and_uris_stay_as_they_are(tmp_path: Path, kept: str) -> None:
    path = tmp_path / "job.toml"
    path.write_text(MINIMAL)

    assert load_job(path, {"data.train": kept}).data.train == kept


def test_names_of_initial_weights_and_shares_of_rows_are_no_paths(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(MINIMAL)

    job = load_job(path, {"model.initial_weights": "he", "data.validation": 0.25})

    assert job.model.initial_weights == "he"
    assert job.data.validation == 0.25


def test_a_resolved_job_means_the_same_wherever_it_is_put(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    content = document(data={"validation": "held.csv"}, model={"initial_weights": "w.safetensors"}, metrics={"sd_dir": "sd"})
    (tmp_path / "a" / "job.toml").write_text(tomli_w.dumps(content))
    job = load_job(tmp_path / "a" / "job.toml", {})
    (tmp_path / "b" / "job.toml").write_text(dump_job(job), encoding="utf-8")

    assert load_job(tmp_path / "b" / "job.toml", {}) == job


positive = st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False)
share = st.floats(0, 1, exclude_max=True)
text = st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda found: "://" not in found)


def table(required: dict[str, st.SearchStrategy[Any]], **optional: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(required, optional=optional)


models = st.one_of(
    table(
        {"task": st.just(task), "hidden": st.lists(st.integers(1, 9), min_size=1, max_size=3)},
        activation=st.sampled_from(["sigmoid", "tanh", "relu", "leaky_relu", "gelu", "identity"]),
        output=st.sampled_from(sorted({DEFAULT_OUTPUT[task], "sigmoid"})),
        loss=st.sampled_from(sorted({DEFAULT_LOSS[task], "squared_error", "huber"})),
        huber_delta=positive,
        bias=st.booleans(),
        l2=share,
        dropout=share,
        initial_weights=st.sampled_from(["small", "zeros", "weights/ä b.safetensors"]),
        dtype=st.sampled_from(["float32", "float64"]),
    )
    for task in ("classification", "binary", "regression")
)
optimizers = st.one_of(
    table(
        {"name": st.just(name)},
        learning_rate=positive,
        clip_norm=positive,
        schedule=table(
            {},
            name=st.sampled_from(["constant", "step", "exponential", "cosine"]),
            warmup_epochs=share,
            step_epochs=st.integers(1, 9),
            factor=st.floats(0.1, 1),
            final_ratio=st.floats(0, 1),
        ),
        **dict.fromkeys(constants, share),
    )
    for name, constants in DEFAULTS.items()
)
documents = table(
    {
        "job": table({"name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)}, seed=st.integers(0, 2**63 - 1)),
        "data": table(
            {"train": text, "label": text | st.lists(text, min_size=1)},
            validation=text | st.floats(0.01, 0.99),
            features=st.lists(text, min_size=1),
            shards=st.integers(3, 99),
            scale=st.sampled_from(["none", "standard", "minmax"]),
        ),
        "model": models,
        "training": table({"rounds": st.integers(1, 2**40)}, epochs=st.integers(1, 99), keep=st.sampled_from(["best", "last"])),
    },
    optimizer=optimizers,
    stopping=table({}, target_loss=share, patience=st.integers(1, 9), max_seconds=positive),
    metrics=table({}, port=st.integers(0, 65535), sd_dir=text, linger_seconds=share),
    storage=table(
        {}, endpoint=st.just("http://127.0.0.1:9000"), region=text, anonymous=st.booleans(), attempts=st.integers(1, 9)
    ),
    checkpoint=table({}, every_epochs=st.integers(1, 9), keep=st.integers(1, 9)),
    workers=table({}, count=st.integers(1, 3), cpus=st.floats(0.0001, 64.0), wait_seconds=positive),
)


@given(content=documents)
def test_a_dumped_job_loads_again_to_the_same_job(content: Document) -> None:
    job = parse_job(content)

    assert parse_job(tomllib.loads(dump_job(job))) == job
    for section, keys in content.items():
        for key, value in keys.items():
            if not isinstance(value, dict):
                found: Any = getattr(getattr(job, section), key)
                assert (list(found) if isinstance(found, tuple) else found) == value
