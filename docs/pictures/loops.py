"""The picture of the three loops in the README: `python docs/pictures/loops.py` writes it, for a light page and a
dark one."""

import dataclasses
import html
import pathlib

HERE = pathlib.Path(__file__).parent
WIDTH, LEFT, BOX, HEIGHT, GAP, ROW = 920, 10, 156, 58, 30, 190
FONT = "-apple-system, 'Segoe UI', 'Noto Sans', Helvetica, Arial, sans-serif"


@dataclasses.dataclass(frozen=True)
class Loop:
    """A method: five boxes from left to right. `back` is written at an arrow from box `last` to box `first`."""

    name: str
    about: str
    boxes: tuple[str, str, str, str, str]  # a line break within a box is |
    back: str
    first: int
    last: int


LOOPS = (
    Loop(
        "LLM2LLM",
        "new examples like those that the student gets wrong · arXiv 2403.15042",
        (
            "a few seeds",
            "train|the student",
            "what does it|get wrong?",
            "a teacher writes|more like that",
            "check, drop|repeats",
        ),
        "seeds and new examples",
        1,
        4,
    ),
    Loop(
        "ReverseGen",
        "queries on which a target fails, and the target trained on them · arXiv 2410.16736",
        (
            "a proposer|writes queries",
            "the target|answers",
            "a judge: failed|or passed?",
            "label|the failures",
            "train the target|on them",
        ),
        "DPO trains the proposer: failed over passed",
        0,
        2,
    ),
    Loop(
        "Active Inheritance",
        "the best answers by a metric of yours · arXiv 2407.01490",
        (
            "prompts",
            "k answers|to each",
            "keep the best|by your metric",
            "train|the student",
            "its profile:|before and after",
        ),
        "if you like, the student answers next",
        1,
        3,
    ),
)


@dataclasses.dataclass(frozen=True)
class Colours:
    """`loops`: one a method. There is no background: the page's shows."""

    text: str
    faint: str
    line: str
    box: str
    loops: tuple[str, str, str]


SCHEMES = {
    "light": Colours("#1f2328", "#59636e", "#8c959f", "#f6f8fa", ("#0072B2", "#B84F00", "#00795A")),
    "dark": Colours("#f0f6fc", "#9198a1", "#6e7681", "#161b22", ("#56B4E9", "#F0965A", "#3FC59B")),
}


def draw(colours: Colours) -> str:
    """The picture as SVG."""
    parts = [_loop(loop, number, colours) for number, loop in enumerate(LOOPS)]
    heads = "".join(_head(f"head{i}", colour) for i, colour in enumerate((*colours.loops, colours.line)))
    told = "Three loops. " + " ".join(f"{loop.name}: {loop.about}." for loop in LOOPS)
    size = f'viewBox="0 0 {WIDTH} {ROW * len(LOOPS) - 18}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="{FONT}" role="img">\n'
        f"<title>{html.escape(told)}</title>\n<defs>{heads}</defs>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def _loop(loop: Loop, number: int, colours: Colours) -> str:
    colour, top = colours.loops[number], ROW * number + 44
    left = [LEFT + i * (BOX + GAP) for i in range(len(loop.boxes))]
    parts = [
        f'<text x="{LEFT}" y="{top - 20}" fill="{colour}" font-size="19" font-weight="600">{loop.name}'
        f'<tspan dx="12" fill="{colours.faint}" font-size="15" font-weight="400">{loop.about}</tspan></text>'
    ]
    for i, box in enumerate(loop.boxes):
        within = loop.first <= i <= loop.last
        stroke, width = (colour, 2) if within else (colours.line, 1.2)
        parts.append(
            f'<rect x="{left[i]}" y="{top}" width="{BOX}" height="{HEIGHT}" rx="10" fill="{colours.box}" '
            f'stroke="{stroke}" stroke-width="{width}"/>'
        )
        lines = box.split("|")
        for n, line in enumerate(lines):
            y = top + HEIGHT / 2 + 6 + 20 * (n - (len(lines) - 1) / 2)
            parts.append(
                f'<text x="{left[i] + BOX / 2:g}" y="{y:g}" fill="{colours.text}" font-size="16" '
                f'text-anchor="middle">{line}</text>'
            )
        if i:
            marker, ink = (number, colour) if loop.first < i <= loop.last else (len(LOOPS), colours.line)
            parts.append(_arrow(f"M{left[i] - GAP + 2} {top + HEIGHT // 2}H{left[i] - 4}", ink, marker))
    bottom, low = top + HEIGHT, top + HEIGHT + 30
    start, end = left[loop.last] + BOX // 2, left[loop.first] + BOX // 2
    back = f"M{start} {bottom + 2}V{low - 10}q0 10 -10 10H{end + 10}q-10 0 -10 -10V{bottom + 5}"
    parts.append(_arrow(back, colour, number))
    parts.append(
        f'<text x="{(start + end) / 2:g}" y="{low + 20}" fill="{colour}" font-size="15" text-anchor="middle">'
        f"{loop.back}</text>"
    )
    return "\n".join(parts)


def _arrow(path: str, colour: str, marker: int) -> str:
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2" marker-end="url(#head{marker})"/>'


def _head(name: str, colour: str) -> str:
    shape = f'<path d="M0 0L8 4L0 8z" fill="{colour}"/>'
    size = 'markerUnits="userSpaceOnUse" markerWidth="9" markerHeight="9" refX="6" refY="4" orient="auto"'
    return f'<marker id="{name}" {size}>{shape}</marker>'


if __name__ == "__main__":
    for scheme, colours in SCHEMES.items():
        (HERE / f"loops-{scheme}.svg").write_text(draw(colours), encoding="utf-8")
