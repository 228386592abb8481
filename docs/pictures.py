"""Pictures of docs/parallelism.md as SVG: the grid of ranks, the stages of a pipeline, bytes by layout."""

from collections.abc import Sequence

from deploy.plan.memory import StateBytes
from pretrain.parallel.grid import Grid

INK, SOFT, WARM = "#3d4450", "#4a5260", "#b8691a"
FILLS = ("#e9f1fa", "#eaf5ec", "#fdf1e3", "#f3ecfa")
EDGES = ("#2f6db3", "#2e8048", "#b8691a", "#7b4fb0")
STYLE = (
    'text{font-family:system-ui,-apple-system,"Segoe UI",Helvetica,Arial,sans-serif;fill:#1f2430;font-size:14px}'
    ".b{font-weight:600;text-anchor:middle}.s{font-size:12.5px;fill:#4a5260}.m{text-anchor:middle}.e{text-anchor:end}"
)


def _page(width: int, height: int, title: str, body: Sequence[str]) -> str:
    arrow = "".join(
        f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0L8 4L0 8z" fill="{colour}"/></marker>'
        for name, colour in (("h", INK), ("o", WARM))
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-labelledby="t">',
            f'<title id="t">{title}</title>',
            f"<defs>{arrow}</defs>",
            f"<style>{STYLE}</style>",
            f'<rect width="{width}" height="{height}" rx="14" fill="#fff"/>',
            *body,
            "</svg>\n",
        ]
    )


def _box(x: float, y: float, width: float, height: float, colour: int, *lines: str) -> list[str]:
    """A box with a heading and lines of smaller text in its middle."""
    fill, edge = FILLS[colour % 4], EDGES[colour % 4]
    parts = [
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="8" fill="{fill}" stroke="{edge}" '
        'stroke-width="1.6"/>'
    ]
    first = y + height / 2 + 5 - 9 * (len(lines) - 1)
    for number, line in enumerate(lines):
        style = "b" if number == 0 else "s m"
        parts.append(f'<text x="{x + width / 2:g}" y="{first + 18 * number:g}" class="{style}">{line}</text>')
    return parts


def _text(x: float, y: float, text: str, style: str = "s") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{style}">{text}</text>'


def _arrow(x1: float, y1: float, x2: float, y2: float, warm: bool = False) -> str:
    colour, end, dash = (WARM, "o", ' stroke-dasharray="5 4"') if warm else (INK, "h", "")
    return (
        f'<path d="M{x1:g} {y1:g}L{x2:g} {y2:g}" fill="none" stroke="{colour}" stroke-width="1.6"{dash} '
        f'marker-end="url(#{end})"/>'
    )


def rank_grid(grid: Grid) -> str:
    """Every rank at its place: tensor-parallel ranks side by side, replicas below each other, stages from left."""
    wide, high, gap = 92, 74, 64
    column = grid.tp_size * wide + gap
    body = []
    for stage in range(grid.pp_size):
        left = 150 + stage * column
        body.append(_text(left + grid.tp_size * wide / 2, 36, f"stage {stage} (pp {stage})", "b"))
        for dp_rank in range(grid.dp_size):
            for tp_rank in range(grid.tp_size):
                rank = grid.rank(tp_rank, dp_rank, stage)
                lines = f"rank {rank}", f"tp {tp_rank}, dp {dp_rank}"
                body += _box(left + tp_rank * wide, 56 + dp_rank * (high + 26), wide - 8, high, stage, *lines)
        if stage + 1 < grid.pp_size:
            for dp_rank in range(grid.dp_size):
                y = 56 + dp_rank * (high + 26) + high / 2
                body.append(_arrow(left + grid.tp_size * wide - 4, y, left + column - 4, y))
    for dp_rank in range(grid.dp_size):
        y = 56 + dp_rank * (high + 26) + high / 2
        body += [_text(20, y - 3, f"replica {dp_rank}"), _text(20, y + 15, "its own samples")]
    bottom = 56 + grid.dp_size * (high + 26) + 6
    body += [
        _text(20, bottom, "In a row of one stage: tensor parallel, the same samples, a part of every block each."),
        _text(
            20, bottom + 20, "Down a column: data parallel, the same weights, ZeRO shards optimizer and teacher here."
        ),
        _text(20, bottom + 40, "Arrows: pipeline, hidden states go right, their gradients come back."),
    ]
    width = 150 + grid.pp_size * column - gap + 30
    return _page(max(width, 640), bottom + 60, f"{grid.world_size} ranks on their grid", body)


def stages(pp_size: int, num_microbatches: int) -> str:
    """What goes from stage to stage, and when: the teacher's passes, then the student's 1F1B."""
    wide, space, body = 170, 190, []
    for stage in range(pp_size):
        x = 40 + stage * (wide + space)
        ends = "frontend" if stage == 0 else "decoder, loss" if stage == pp_size - 1 else "blocks only"
        body += _box(x, 46, wide, 150, stage, f"stage {stage}", "its blocks", ends)
        if stage + 1 < pp_size:
            start, stop = x + wide + 4, x + wide + space - 4
            rows = (
                (66, False, "teacher: hidden state"),
                (100, False, "teacher: running target"),
                (134, False, "student: hidden state"),
                (172, True, "its gradient"),
            )
            for y, back, label in rows:
                body.append(_arrow(stop, y, start, y, warm=True) if back else _arrow(start, y, stop, y))
                body.append(_text((start + stop) / 2, y - 6, label, "s m"))
    body.append(_text(40, 30, "What travels between two stages, for every microbatch", "t"))
    slots = _schedule(pp_size, num_microbatches)
    body.append(_text(40, 240, "When: T teacher forward, F student forward, B student backward", "t"))
    step = 44
    for stage, row in enumerate(slots):
        y = 258 + stage * 44
        body.append(_text(40, y + 23, f"stage {stage}"))
        for time, what in enumerate(row):
            if what:
                kind, number = what
                body += _box(
                    110 + time * step, y, (2 if kind == "B" else 1) * step - 5, 34, "TFB".index(kind), f"{kind}{number}"
                )
    length = max(len(row) for row in slots)
    width = max(40 + pp_size * (wide + space) - space + 40, 110 + length * step + 30)
    return _page(width, 258 + pp_size * 44 + 20, "What travels between the stages of a pipeline, and when", body)


def _schedule(pp_size: int, num_microbatches: int) -> list[list[tuple[str, int] | None]]:
    """Slots of time by stage, a backward pass taking two: every stage does what it can as soon as it can, in order."""
    orders = []
    for stage in range(pp_size):
        ahead = min(pp_size - stage - 1, num_microbatches)
        order = [("T", number) for number in range(num_microbatches)] + [("F", number) for number in range(ahead)]
        for number in range(num_microbatches):
            order += [("F", number + ahead)] * (number + ahead < num_microbatches) + [("B", number)]
        orders.append(order)
    ends: dict[tuple[int, str, int], int] = {}
    free, rows = [0] * pp_size, [[] for _ in range(pp_size)]  # type: ignore[var-annotated]
    while any(orders):
        for stage, order in enumerate(orders):
            if not order:
                continue
            kind, number = order[0]
            before = stage + 1 if kind == "B" else stage - 1
            needed = ends.get((before, kind, number)) if 0 <= before < pp_size else 0
            if needed is None:
                continue
            start = max(free[stage], needed)
            length = 2 if kind == "B" else 1
            rows[stage] += [None] * (start - len(rows[stage])) + [order.pop(0)] + [None] * (length - 1)
            free[stage] = ends[stage, kind, number] = start + length
    return rows


def bytes_bars(title: str, held: dict[str, StateBytes]) -> str:
    """One bar of parts for every layout, to scale."""
    kinds = (
        ("weights", "#2f6db3"),
        ("gathered_weights", "#9cc0e6"),
        ("gradients", "#b8691a"),
        ("optimizer", "#7b4fb0"),
        ("teacher_shard", "#2e8048"),
        ("teacher_weights", "#93cfa4"),
        ("buffers", "#8a93a1"),
    )
    scale = 560 / max(one.total for one in held.values())
    body, x = [_text(20, 30, title, "t")], 20.0
    for name, colour in kinds:
        body.append(f'<rect x="{x:g}" y="44" width="12" height="12" fill="{colour}"/>')
        label = name.replace("_", " ")
        body.append(_text(x + 17, 55, label))
        x += 40 + 7 * len(label)
    for number, (layout, one) in enumerate(held.items()):
        y, start = 76 + number * 30, 240.0
        body.append(_text(start - 10, y + 15, layout, "s e"))
        for name, colour in kinds:
            length = getattr(one, name) * scale
            body.append(f'<rect x="{start:.1f}" y="{y}" width="{length:.1f}" height="20" fill="{colour}"/>')
            start += length
        body.append(_text(start + 8, y + 15, f"{one.total / 1e9:.2f} GB"))
    return _page(900, 76 + len(held) * 30 + 14, title, body)
