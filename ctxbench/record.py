"""The record: one flat row per cell, whatever became of it; and what each measured column means."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION: Literal[1] = 1

Status = Literal["ok", "skipped", "oom", "timeout", "crashed", "error", "invalid"]
FAILED: tuple[Status, ...] = ("oom", "timeout", "crashed", "error", "invalid")
Row = dict[str, Any]
Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Score = Annotated[float, Field(allow_inf_nan=False)]


class Record(BaseModel):
    """The outcome of one cell. Units are in the names; None means "not measured", never 0."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    # identity
    schema_version: Literal[1] = SCHEMA_VERSION
    cell_id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    run_id: str
    created_utc: str
    kind: Literal["profile", "task"]
    block: str
    spec: str
    family: str
    options_json: str
    seed: int
    estimated: bool

    # input
    batch: Count
    channels: Count
    height: Count
    width: Count
    dtype: str
    mode: Literal["infer", "train"]
    compiled: bool
    device_type: str
    device_name: str

    # outcome
    status: Status
    reason: str | None = None
    error_type: str | None = None
    wall_s: Amount | None = None

    # cost
    params: Count | None = None
    macs_counted: Count | None = None
    macs_formula: Count | None = None
    macs_backward: Count | None = None
    macs_fvcore: Count | None = None
    fvcore_missed_json: str | None = None
    uncounted_ops_json: str | None = None

    # memory
    memory_predicted_bytes: Count | None = None
    memory_measured_bytes: Count | None = None
    memory_source: Literal["predicted", "allocator"] | None = None

    # time
    latency_ms_median: Amount | None = None
    latency_ms_ci_low: Amount | None = None
    latency_ms_ci_high: Amount | None = None
    latency_cpu_ms_median: Amount | None = None
    latency_ref_ratio: Amount | None = None
    iterations: Count | None = None
    converged: bool | None = None
    first_call_ms: Amount | None = None
    images_per_s: Amount | None = None
    latency_samples_json: str | None = None
    load_average: Amount | None = None

    # quality
    task: str | None = None
    preset: str | None = None
    dataset: str | None = None
    metric: str | None = None
    miou: Score | None = None
    context_iou: Score | None = None
    pixel_accuracy: Score | None = None
    fid: Score | None = None
    kid: Score | None = None
    is_mean: Score | None = None
    is_std: Score | None = None
    precision: Score | None = None
    recall: Score | None = None
    train_iterations: Count | None = None
    protocol_json: str | None = None

    # environment
    ctxbench_version: str
    git_commit: str | None
    git_dirty: bool | None
    python: str
    torch: str
    cuda: str | None
    cudnn: str | None
    driver: str | None
    cpu: str
    threads: int
    tf32: bool
    env_hash: str

    @property
    def row(self) -> Row:
        """The columns, with the headline MACs and memory and the number of pixels beside them."""
        measured, predicted = self.memory_measured_bytes, self.memory_predicted_bytes
        return self.model_dump() | {
            "macs": self.macs_counted,
            "memory_bytes": predicted if measured is None else measured,
            "pixels": self.height * self.width,
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
        fields = json.loads(text, parse_constant=_refuse_constant)
        if isinstance(fields, dict) and fields.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(f"schema version {fields.get('schema_version')!r}, not {SCHEMA_VERSION}")
        return cls.model_validate(fields)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number a record may hold")


@dataclass(frozen=True)
class Metric:
    """How a column is shown: its label and unit, and how much of the column makes one unit."""

    column: str
    label: str
    unit: str
    scale: float

    @property
    def title(self) -> str:
        return f"{self.label} ({self.unit})" if self.unit else self.label


MIB, GIGA, MEBI = 2**20, 1e9, 2**20

METRICS = {
    metric.column: metric
    for metric in (
        Metric("params", "params", "Mi", MEBI),
        Metric("macs", "MACs", "G", GIGA),
        Metric("macs_backward", "backward", "G", GIGA),
        Metric("macs_fvcore", "fvcore", "G", GIGA),
        Metric("memory_bytes", "peak memory", "MiB", MIB),
        Metric("memory_predicted_bytes", "predicted", "MiB", MIB),
        Metric("latency_ms_median", "latency", "ms", 1),
        Metric("latency_cpu_ms_median", "CPU time", "ms", 1),
    )
}
