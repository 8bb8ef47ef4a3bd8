"""A record survives the way to disk and back, and what is no record is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ctxbench.record import METRICS, Record
from tests.factories import IDENTITY, failed_record, make_record

count = st.integers(0, 2**63 - 1)
amount = st.floats(0, 1e15, exclude_max=True)
score = st.floats(-1e15, 1e15, exclude_min=True, exclude_max=True) | st.none()
share = st.floats(0, 1) | st.none()
text = st.text(max_size=1000)
costs = st.none() | st.fixed_dictionaries(
    dict.fromkeys(("params", "macs_counted", "macs_formula", "memory_predicted_bytes"), count)
)
times = st.none() | st.fixed_dictionaries(
    dict.fromkeys(("latency_ms_median", "latency_ms_ci_low", "latency_ms_ci_high"), amount)
    | {"iterations": count, "converged": st.booleans()}
)
records = st.builds(
    lambda costs, times, **fields: Record(**(IDENTITY | (costs or {}) | (times or {}) | fields)),
    costs=costs,
    times=times,
    cell_id=st.text("0123456789abcdef", min_size=16, max_size=16),
    block=text,
    spec=text,
    options_json=st.dictionaries(st.text(), st.integers()).map(json.dumps),
    seed=st.integers(-(2**63), 2**63 - 1),
    status=st.sampled_from(["ok", "skipped", "oom", "timeout", "crashed", "error", "invalid"]),
    reason=text | st.none(),
    wall_s=amount | st.none(),
    first_call_ms=amount | st.none(),
    miou=share,
    fid=score,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(records)
def test_every_record_survives_the_way_through_json(record: Record) -> None:
    assert Record.from_json(record.to_json()) == record


def test_a_record_is_a_flat_row_that_any_json_reader_can_read() -> None:
    fields = json.loads(make_record().to_json())
    assert fields["schema_version"] == 1
    assert not any(isinstance(value, (dict, list)) for value in fields.values())


def test_what_was_not_measured_is_null_and_never_zero() -> None:
    fields = json.loads(failed_record("error", "it broke").to_json())
    measured = [name for name in fields if name.startswith(("macs", "memory", "latency", "params"))]
    assert len(measured) > 10
    assert [name for name in measured if fields[name] is not None] == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"latency_ms_median": float("nan")}, "NaN"),
        ({"latency_ms_median": float("inf")}, "Infinity"),
        ({"latency_ms_median": float("-inf")}, "-Infinity"),
        ({"fid": float("nan")}, "NaN"),
        ({"schema_version": 2}, "schema version 2, not 1"),
        ({"schema_version": None}, "schema version None, not 1"),
        ({"schema_version": "1"}, "schema version '1', not 1"),
        ({"colour": "red"}, "colour"),
        ({"params": "12"}, "params"),
        ({"params": 12.0}, "params"),
        ({"params": True}, "params"),
        ({"params": -1}, "params"),
        ({"latency_ms_median": -1.0}, "latency_ms_median"),
        ({"latency_ms_median": "4"}, "latency_ms_median"),
        ({"converged": 1}, "converged"),
        ({"block": None}, "block"),
        ({"block": ["none"]}, "block"),
        ({"status": "fine"}, "status"),
        ({"mode": "test"}, "mode"),
        ({"cell_id": "../../etc/passwd"}, "cell_id"),
        ({"cell_id": "0123456789ABCDEF"}, "cell_id"),
        ({"cell_id": "0123456789abcdef\n"}, "cell_id"),
    ],
    ids=str,
)
def test_a_wrong_field_is_refused_and_named(change: dict[str, Any], reason: str) -> None:
    fields = json.loads(make_record().to_json()) | change
    with pytest.raises(ValueError, match=reason):
        Record.from_json(json.dumps(fields))


def test_a_number_too_large_for_a_float_is_refused() -> None:
    broken = make_record().to_json().replace('"latency_ms_median": 4.0', '"latency_ms_median": 1e999')
    assert "1e999" in broken
    with pytest.raises(ValueError, match="latency_ms_median"):
        Record.from_json(broken)


def test_a_missing_field_is_refused_and_named() -> None:
    fields = json.loads(make_record().to_json())
    del fields["torch"]
    with pytest.raises(ValueError, match="torch"):
        Record.from_json(json.dumps(fields))


@pytest.mark.parametrize("broken", ["", "{", "null", "[]", "1", '"text"', "{}", '{"a": 1}', "\0"])
def test_what_is_no_record_at_all_is_refused(broken: str) -> None:
    with pytest.raises(ValueError):  # each kind of damage has words of its own
        Record.from_json(broken)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_a_truncated_record_is_refused_wherever_it_ends(data: st.DataObject) -> None:
    whole = make_record().to_json().rstrip()
    end = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(ValueError):
        Record.from_json(whole[:end])


def test_a_record_does_not_change_once_it_is_made() -> None:
    with pytest.raises(ValidationError):
        make_record().status = "error"


@pytest.mark.parametrize(
    "change",
    [
        {"macs_formula": None},
        {"memory_predicted_bytes": None},
        {"latency_ms_ci_low": None},
        {"converged": None},
        {"options_json": "{"},
        {"fvcore_missed_json": "NaN"},
        {"params": 10**400},
        {"dtype": 'x"><img src=x onerror=alert(1)>'},
        {"device_type": "tpu"},
        {"env_hash": "../../etc"},
        {"reason": "x" * 1_000_000},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_record_that_cannot_be_shown_is_none(change: dict[str, Any]) -> None:
    """Half a measurement, a text that is no JSON, and what would end up in a page or a path."""
    fields = json.loads(make_record().to_json()) | change
    with pytest.raises(ValueError):
        Record.from_json(json.dumps(fields))


def test_every_metric_that_is_shown_is_a_column_with_a_unit() -> None:
    row = make_record().row
    for name, metric in METRICS.items():
        assert name in row
        assert metric.label
        assert metric.scale > 0
        assert metric.unit in metric.title
