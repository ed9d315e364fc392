"""Whether every metric that dashboards, alert rules and the autoscaler's rules ask for is one that services expose.

    python3 k8s/check/names.py METRICS FILE..."""

import json
import re
import sys
from pathlib import Path

import yaml


def expressions(document):
    """Every query in a document."""
    if isinstance(document, dict):
        for key, value in document.items():
            if key in ("expr", "seriesQuery") and isinstance(value, str):
                yield value
            else:
                yield from expressions(value)
    elif isinstance(document, list):
        for item in document:
            yield from expressions(item)


# What stands between these are labels: braces, and the list after a keyword of grouping or joining.
LABELS = re.compile(r"\{[^}]*\}|\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")

exposed = set(Path(sys.argv[1]).read_text().split())
wrong, asked = [], 0
for file in map(Path, sys.argv[2:]):
    document = json.loads(file.read_text()) if file.suffix == ".json" else yaml.safe_load(file.read_text())
    found = list(expressions(document))
    if not found:
        wrong.append(f"{file}: it asks for nothing")
    for expression in found:
        series = LABELS.sub("", re.sub(r'"[^"]*"', "", expression))
        for name in re.findall(r"\b(?:tidegate|process|http)_\w+", series):
            asked += 1
            if name not in exposed:
                wrong.append(f"{file}: no service exposes {name}")
print("\n".join(wrong) or f"ok: {asked} uses of metrics, all exposed")
sys.exit(bool(wrong))
