"""What several test files share."""

from __future__ import annotations

import json
from pathlib import Path

from tests.unit.data.worlds import jpeg


def align_folder(folder: Path, num: int = 7, **changes: object) -> Path:
    (folder / "image").mkdir(parents=True, exist_ok=True)
    annotations = [{"image_id": str(n), "caption": f"Résumé of {n}."} for n in range(num)]
    for entry in annotations:
        (folder / "image" / f"{entry['image_id']}.jpg").write_bytes(jpeg(int(entry["image_id"])))
    annotations += changes.get("extra", [])  # type: ignore[operator]
    text = json.dumps({"annotations": annotations})
    (folder / "filter_cap.json").write_text(text)
    return folder
