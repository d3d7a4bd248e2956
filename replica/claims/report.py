"""Verdicts as text, as Markdown for REPRODUCE.md, and as JSON."""

import dataclasses
import math
import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import Any

from replica.claims.findings import VERDICTS, Finding
from replica.claims.table import Claim, Judged

WIDTH = 100
MARKDOWN_HEAD = (
    "| | claim | paper | verdict | found |",
    "| --- | --- | --- | --- | --- |",
)


def listed(claims: Sequence[Claim]) -> str:
    """What the claims are and what runs for them, without a verdict."""
    blocks = []
    for claim in claims:
        head = f"{claim.number:>2}  {claim.name} ({claim.section})"
        rows = (
            ("says", claim.sentence),
            ("runs", claim.runs),
            ("full scale", claim.cost),
        )
        blocks.append("\n".join([head, *(_row(name, text) for name, text in rows)]))
    return "\n".join(blocks)


def _row(name: str, text: str) -> str:
    indent = " " * 16
    return textwrap.fill(f"    {name:<12}{text}", WIDTH, subsequent_indent=indent)


def as_text(judged: Sequence[Judged]) -> str:
    """Every claim with its verdict and its findings, and how many there are of each."""
    blocks = []
    for one in judged:
        claim = one.claim
        lines = [f"{claim.number:>2}  {claim.name} ({claim.section}): {one.shown}"]
        lines.append(_row("says", claim.sentence))
        lines += [_row(_mark(finding), _sentence(finding)) for finding in one.findings]
        blocks.append("\n".join(lines))
    return "\n".join([*blocks, counted(judged)])


def counted(judged: Sequence[Judged]) -> str:
    """`26 claims: 2 reproduced, ...`."""
    numbers = Counter(one.verdict for one in judged)
    found = ", ".join(f"{numbers[v]} {v}" for v in reversed(VERDICTS) if numbers[v])
    return f"{len(judged)} claim{'s' if len(judged) != 1 else ''}: {found}"


def _mark(finding: Finding) -> str:
    return {"reproduced": "yes", "contradicted": "no", "within noise": "unclear"}.get(
        finding.verdict, "not run"
    )


def _sentence(finding: Finding) -> str:
    """`what: got; the paper: expected (why)`."""
    why = f" ({finding.why})" if finding.why else ""
    if not finding.got:
        return f"{finding.what}: the paper: {finding.expected}; not run here: {finding.why}"
    return f"{finding.what}: {finding.got}; the paper: {finding.expected}{why}"


def as_markdown(judged: Sequence[Judged]) -> str:
    """The table of REPRODUCE.md: a row a claim; of equal findings those that differ are named."""
    rows = []
    for one in judged:
        claim = one.claim
        found = "; ".join(dict.fromkeys(map(_short, _told(one.findings))))
        cells = (str(claim.number), claim.sentence, claim.section, one.shown, found)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join((*MARKDOWN_HEAD, *rows))


def _told(findings: Sequence[Finding]) -> list[Finding]:
    """All findings, but for plain ones that agree where others do not."""
    others = [x for x in findings if x.verdict != "reproduced" or x.scale]
    plain = [x for x in findings if x not in others]
    return others or plain[:3]


def _short(finding: Finding) -> str:
    if not finding.got:
        return finding.why
    why = f" ({finding.why})" if finding.why else ""
    return f"{finding.what}: {finding.got}; the paper: {finding.expected}{why}"


def as_json(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """Plain values; what is infinite or not a number is null."""
    return [
        {
            **{name: getattr(one.claim, name) for name in _FIELDS},
            "verdict": one.verdict,
            "findings": [_plain(dataclasses.asdict(finding)) for finding in one.findings],
        }
        for one in judged
    ]


_FIELDS = ("number", "name", "section", "sentence", "runs", "cost")


def _plain(values: Any) -> Any:
    if isinstance(values, dict):
        return {name: _plain(value) for name, value in values.items()}
    return None if isinstance(values, float) and not math.isfinite(values) else values
