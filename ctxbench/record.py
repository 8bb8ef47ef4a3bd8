"""The record: one flat row per cell, whatever became of it; and what each measured column means."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

SCHEMA_VERSION: Literal[1] = 1
LARGEST_COUNT = 10**30
LONGEST_NUMBER = 40  # digits
DEEPEST = 50  # nesting of JSON in a column

Status = Literal["ok", "skipped", "oom", "timeout", "crashed", "error", "invalid"]
FAILED: tuple[Status, ...] = ("oom", "timeout", "crashed", "error", "invalid")
Row = dict[str, Any]
Count = Annotated[int, Field(ge=0, lt=LARGEST_COUNT)]
Text = Annotated[str, Field(max_length=1000)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
LongText = Annotated[str, Field(max_length=100_000)]
Side = Annotated[int, Field(gt=0, lt=2**31)]
Amount = Annotated[float, Field(ge=0, lt=1e15, allow_inf_nan=False)]
Score = Annotated[float, Field(gt=-1e15, lt=1e15, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Ranking = Literal["miou", "context_iou", "fid", "kid", "agreement"]

TRAINED = (
    "task",
    "preset",
    "model",
    "dataset",
    "train_iterations",
    "protocol_json",
)  # what every training has
TOGETHER = (
    ("macs_counted", "macs_formula", "params", "memory_predicted_bytes"),
    ("latency_ms_median", "latency_ms_ci_low", "latency_ms_ci_high", "iterations", "converged"),
    ("latency_graph_ms_median", "latency_graph_ms_ci_low", "latency_graph_ms_ci_high"),
)


class Record(BaseModel):
    """The outcome of one cell. Units are in the names; None means "not measured", never 0."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    # identity
    schema_version: Literal[1] = SCHEMA_VERSION
    cell_id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    run_id: Text
    created_utc: Text
    kind: Literal["profile", "step", "task"]
    block: Text
    spec: Text
    family: Text
    options_json: LongText
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)]
    estimated: bool

    # input
    batch: Side
    channels: Side
    height: Side
    width: Side
    dtype: Literal["float64", "float32", "bfloat16", "float16"]
    mode: Literal["infer", "train"]
    compiled: bool
    device_type: Literal["cpu", "cuda"]
    device_name: Text

    # outcome
    status: Status
    reason: LongText | None = None
    error_type: Text | None = None
    wall_s: Amount | None = None

    # cost
    params: Count | None = None
    macs_counted: Count | None = None
    macs_formula: Count | None = None
    macs_backward: Count | None = None
    macs_fvcore: Count | None = None
    fvcore_missed_json: LongText | None = None
    uncounted_ops_json: LongText | None = None

    # memory
    memory_predicted_bytes: Count | None = None
    memory_measured_bytes: Count | None = None
    memory_source: Literal["predicted", "allocator", "resident"] | None = None

    # time
    latency_ms_median: Amount | None = None
    latency_ms_ci_low: Amount | None = None
    latency_ms_ci_high: Amount | None = None
    latency_cpu_ms_median: Amount | None = None
    latency_ref_ratio: Amount | None = None
    latency_graph_ms_median: Amount | None = None
    latency_graph_ms_ci_low: Amount | None = None
    latency_graph_ms_ci_high: Amount | None = None
    graph_reason: LongText | None = None
    iterations: Count | None = None
    calls_per_iteration: Count | None = None
    converged: bool | None = None
    first_call_ms: Amount | None = None
    images_per_s: Amount | None = None
    latency_samples_json: LongText | None = None
    latency_cpu_samples_json: LongText | None = None
    reference_ms_median: Amount | None = None
    reference_ms_ci_low: Amount | None = None
    reference_ms_ci_high: Amount | None = None
    reference_gflops: Amount | None = None
    calls_s: Amount | None = None
    rounds_id: Digest | None = None
    sdpa_backend: Text | None = None
    clock_mhz: Amount | None = None
    load_average: Amount | None = None

    # quality
    task: Text | None = None
    model: Text | None = None
    preset: Text | None = None
    dataset: Text | None = None
    metric: Ranking | None = None
    miou: Share | None = None
    context_iou: Share | None = None
    pixel_accuracy: Share | None = None
    fid: Score | None = None
    kid: Score | None = None
    kid_std: Amount | None = None
    is_mean: Score | None = None
    is_std: Score | None = None
    precision: Share | None = None
    recall: Share | None = None
    accuracy: Share | None = None
    relative_spread: Amount | None = None
    agreement: Annotated[float, Field(ge=-1, le=1)] | None = None
    collapsed: Text | None = None
    images_scored: Count | None = None
    extractor: Text | None = None
    anchors_json: LongText | None = None
    scoring: Text | None = None
    first_weights: Text | None = None
    iou_json: LongText | None = None
    train_iterations: Count | None = None
    train_s: Amount | None = None
    train_cpu_s: Amount | None = None
    protocol_json: LongText | None = None

    # environment
    ctxbench_version: Text
    git_commit: Text | None
    git_dirty: bool | None
    python: Text
    torch: Text
    cuda: Text | None
    cudnn: Text | None
    driver: Text | None
    cpu: Text
    threads: Side
    tf32: bool
    flags_json: LongText = "{}"
    env_hash: Digest
    code_hash: Digest
    program_hash: Digest | None = None

    @model_validator(mode="after")
    def belongs_together(self) -> Record:
        """What is only of use together is there together, and the JSON columns hold JSON."""
        for names in TOGETHER:
            if len({getattr(self, name) is None for name in names}) > 1:
                raise ValueError(f"{', '.join(names)} must be given together")
        if self.kind == "task" and (absent := [it for it in TRAINED if getattr(self, it) is None]):
            raise ValueError(f"a training without {', '.join(absent)}")
        if (
            self.kind == "task"
            and self.status == "ok"
            and (self.metric is None or getattr(self, self.metric) is None)
        ):
            raise ValueError("a training without its score")
        for name in type(self).model_fields:
            text = getattr(self, name)
            if name.endswith("_json") and text is not None:
                value = JSON.decode(text)
                if text.count("[") + text.count("{") > DEEPEST and depth(value) > DEEPEST:
                    raise ValueError(f"{name} is nested too deeply")
                if not isinstance(value, list if name.endswith("samples_json") else dict):
                    raise ValueError(f"{name} holds JSON of another kind")
        return self

    @property
    def row(self) -> Row:
        """The columns; beside them the headline MACs, those of forward and backward, pixels, and runs."""
        counted, backward = self.macs_counted, self.macs_backward if self.mode == "train" else 0
        return self.model_dump() | {
            "macs": counted,
            "macs_total": None if counted is None or backward is None else counted + backward,
            "pixels": self.height * self.width,
            "runs": 1,
        }

    def to_json(self) -> str:
        return json.dumps(self.model_dump(), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Record:
        """Read a record back.

        Raises:
            ValueError: for broken JSON, NaN or infinity, a missing, unknown or mistyped field, and
                the schema of another version.
        """
        fields = WHOLE.decode(text)
        if isinstance(fields, dict) and fields.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(f"schema version {fields.get('schema_version')!r}, not {SCHEMA_VERSION}")
        return cls.model_validate(fields)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number a record may hold")


def _bounded(digits: str) -> int:
    """A whole number that a float can hold too."""
    if len(digits) > LONGEST_NUMBER:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def depth(value: Any) -> int:
    """How deeply lists and objects are nested in a value of JSON."""
    found, level = 0, [value]
    while level := [it for it in level if isinstance(it, (list, dict))]:
        found += 1
        level = [inner for it in level for inner in (it.values() if isinstance(it, dict) else it)]
    return found


JSON = json.JSONDecoder(parse_constant=_refuse_constant, parse_int=_bounded)
WHOLE = json.JSONDecoder(parse_constant=_refuse_constant)


@dataclass(frozen=True)
class Metric:
    """How a column is shown: its label and unit, how much of the column makes one unit, its direction."""

    column: str
    label: str
    unit: str
    scale: float
    lower_is_better: bool = True

    @property
    def title(self) -> str:
        return f"{self.label} ({self.unit})" if self.unit else self.label


MIB, GIGA, MEBI = 2**20, 1e9, 2**20

METRICS = {
    metric.column: metric
    for metric in (
        Metric("params", "params", "Mi", MEBI),
        Metric("macs", "MACs", "G", GIGA),
        Metric("macs_total", "MACs", "G", GIGA),
        Metric("macs_backward", "backward MACs", "G", GIGA),
        Metric("macs_fvcore", "fvcore", "G", GIGA),
        Metric("memory_predicted_bytes", "predicted peak", "MiB", MIB),
        Metric("memory_measured_bytes", "allocator's peak", "MiB", MIB),
        Metric("latency_ms_median", "latency", "ms", 1),
        Metric("latency_cpu_ms_median", "CPU time", "ms", 1),
        Metric("latency_ref_ratio", "/ matmul", "", 1),
        Metric("latency_graph_ms_median", "as a graph", "ms", 1),
        Metric("first_call_ms", "first call", "ms", 1),
        Metric("images_per_s", "images", "1/s", 1, lower_is_better=False),
    )
}
