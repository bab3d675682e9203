"""A picture of the packages, drawn from the real imports: an arc leads from an importer down to what it uses."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap
from typing import Any

import grimp

PICTURE = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 900 {height}" width="900" role="img" \
aria-label="Packages and their imports">
<style>
.page {{ fill: #ffffff }}
.box {{ fill: #f4f6fb; stroke: #5c6bc0 }}
.name {{ font: 600 15px sans-serif; fill: #1a237e }}
.part {{ font: 12px monospace; fill: #37474f; white-space: pre }}
.arc {{ fill: none; stroke: #5c6bc0; stroke-width: 1.4; opacity: .75 }}
</style>
<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">\
<path d="M0 0 L8 4 L0 8 z" fill="#5c6bc0"/></marker></defs>
<rect class="page" width="900" height="{height}"/>
{parts}
</svg>
"""


def floors(graph: Any, package: str) -> list[list[str]]:
    """What stands directly in a package, by levels: each level imports only levels after it."""
    children = sorted(graph.find_children(package))
    below = {
        one: [
            two
            for two in children
            if two != one and graph.direct_import_exists(importer=one, imported=two, as_packages=True)
        ]
        for one in children
    }
    height: dict[str, int] = {}

    def level(name: str) -> int:
        if name not in height:
            height[name] = 0  # where there is a circle, which the contracts forbid, it ends here
            height[name] = 1 + max((level(one) for one in below[name]), default=-1)
        return height[name]

    levels: list[list[str]] = [[] for _ in range(1 + max(map(level, children), default=0))]
    for name in children:
        levels[level(name)].append(name.removeprefix(f"{package}."))
    return [one for one in reversed(levels) if one]


def packages_picture(packages: Sequence[str]) -> str:
    """The packages from the top down, what each holds by levels, and an arc for each import between two."""
    graph = grimp.build_graph(*packages, include_external_packages=False, cache_dir=None)
    parts, middles, y = [], {}, 14
    for package in packages:
        levels = [line for names in floors(graph, package) for line in wrap("  ·  ".join(names), 92)]
        height = 34 + 19 * len(levels)
        parts.append(f'<rect x="10" y="{y}" width="690" height="{height}" rx="8" class="box"/>')
        parts.append(f'<text x="24" y="{y + 22}" class="name">{package}</text>')
        parts += [
            f'<text x="24" y="{y + 42 + 19 * number}" class="part">{line}</text>' for number, line in enumerate(levels)
        ]
        middles[package] = (y, height)
        y += height + 14
    leaving = dict.fromkeys(packages, 0)
    arriving = dict.fromkeys(packages, 0)
    for position, upper in enumerate(packages):
        for lower in packages[position + 1 :]:
            if not graph.direct_import_exists(importer=upper, imported=lower, as_packages=True):
                continue
            (top, tall), (bottom, _) = middles[upper], middles[lower]
            start, end = top + tall - 8 - 6 * leaving[upper], bottom + 10 + 7 * arriving[lower]
            leaving[upper] += 1
            arriving[lower] += 1
            reach = 700 + 34 * (packages.index(lower) - position)
            parts.append(
                f'<path d="M700 {start} C{reach} {start} {reach} {end} 706 {end}" class="arc" marker-end="url(#head)"/>'
            )
    return PICTURE.format(height=y, parts="\n".join(parts))
