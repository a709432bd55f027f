"""profile_<VARIANT>.json, .csv and .png."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from quantlib.measuring.profile.operations import Operations
from quantlib.measuring.profile.operators import Node
from quantlib.measuring.profile.peak import Peak
from quantlib.measuring.profile.plot import draw
from quantlib.measuring.profile.result import Line, Profile
from quantlib.support.files import reading_json, write_csv, write_json
from quantlib.support.plotting import can_plot

SCHEMA_VERSION = 1


def file_name(variant: str, kind: str = "json") -> str:
    """The name of a variant's profile file; kind is "json", "csv" or "png"."""
    return f"profile_{variant}.{kind}"


def write_profile(directory: Path, profile: Profile) -> None:
    """Write profile_<VARIANT>.json, .csv and .png into `directory`.

    The JSON file holds everything: the nodes in the order of execution, then the same summed by operator, by
    role and by layer. The CSV file has a row for each node. Null, or an empty cell, is None.

    Raises:
        InputError: the directory cannot be written.
    """
    nodes = [_node_row(profile, node) for node in profile.nodes]
    write_json(directory / file_name(profile.variant), _json(profile, nodes))
    write_csv(directory / file_name(profile.variant, "csv"), nodes)
    if can_plot():
        draw(directory / file_name(profile.variant, "png"), profile)


def read_profile(path: Path) -> Profile:
    """The profile in a profile_<VARIANT>.json.

    Raises:
        InputError: the file is missing, damaged, or of another version.
    """
    with reading_json(path, SCHEMA_VERSION, "the profile of a variant") as value:
        nodes = tuple(
            Node(row["name"], row["operator"], row["ms"], Operations(row["float_ops"], row["integer_ops"]))
            for row in value["nodes"]
        )
        return Profile(
            value["variant"],
            (value["batch_size"], value["seq_len"]),
            value["median_ms"],
            value["profiled_ms"],
            value["outside_ms"],
            Peak(**value["peak"]),
            nodes,
        )


def _json(profile: Profile, nodes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    batch_size, seq_len = profile.shape
    return {
        "schema_version": SCHEMA_VERSION,
        "variant": profile.variant,
        "batch_size": batch_size,
        "seq_len": seq_len,
        "median_ms": profile.median_ms,
        "profiled_ms": profile.profiled_ms,
        "outside_ms": profile.outside_ms,
        "product_ms": profile.product_ms,
        "limit_ms": profile.limit_ms,
        "share": profile.share,
        "disturbed": profile.disturbed,
        "peak": asdict(profile.peak),
        "operators": [_line_row(line) for line in profile.by_operator()],
        "roles": [_line_row(line) for line in profile.by_role()],
        "layers": [_line_row(line) for line in profile.by_layer()],
        "nodes": nodes,
    }


def _line_row(line: Line) -> dict[str, Any]:
    return {
        "name": line.name,
        "count": line.count,
        "ms": line.ms,
        **asdict(line.operations),
        "limit_ms": line.limit_ms,
        "gops": line.gops,
        "peak_share": line.peak_share,
    }


def _node_row(profile: Profile, node: Node) -> dict[str, Any]:
    row = _line_row(profile.line(node.name, [node]))
    del row["count"]
    return {"name": row.pop("name"), "operator": node.operator, "role": node.role, "layer": node.layer, **row}
