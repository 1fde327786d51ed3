"""Tests of ``config/describe.py``."""

from __future__ import annotations

import os
from pathlib import Path

from mgpt4_hpc.config.describe import describe_keys

DOCS = Path(__file__).parents[3] / "docs" / "sites.md"

BEGIN = (
    "<!-- made from the schema: MGPT4_UPDATE_DOCS=1 pytest tests/unit/config/test_describe.py -->\n"
)

END = "<!-- end -->"


def table_of_keys() -> str:
    rows = ["| key | default | |", "|---|---|---|"]
    for one in describe_keys():
        if one.key.startswith(("launch.", "container.")):
            default = one.default_text.replace("|", "\\|")
            rows.append(f"| `{one.key}` | `{default}` | {one.doc} |")
    return "\n".join(rows) + "\n"


def test_the_docs_describe_every_key_as_the_schema_does() -> None:
    text = DOCS.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    wanted = f"{before}{BEGIN}\n{table_of_keys()}{END}{after}"
    if os.environ.get("MGPT4_UPDATE_DOCS"):
        DOCS.write_text(wanted)
    assert DOCS.read_text() == wanted
