"""What a study ends in: tables, and claims with a verdict that follows from an interval, as Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from keylayers.maths.stability import holm
from keylayers.measures import PairedDifference, paired_difference, t_interval


@dataclass(frozen=True)
class Table:
    """A table of a results page."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """As Markdown, notes below."""
        lines = [f"### {self.title}", "", _line(self.columns), _line("---" for _ in self.columns)]
        lines += map(_line, self.rows)
        return "\n".join([*lines, *(["", *self.notes] if self.notes else [])])


@dataclass(frozen=True)
class Claim:
    """Something stated, what was measured of it, and what follows."""

    text: str
    """The statement, such that a positive effect supports it."""
    source: str
    """Who states it, and their figure."""
    effect: PairedDifference
    unit: str
    p_value: float
    """Adjusted for all claims of its family (Holm)."""

    @property
    def verdict(self) -> str:
        """`supported` if the effect is positive and significant, `contradicted` if negative, else `undecided here`."""
        if self.p_value >= 0.05:
            return "undecided here"
        return "supported" if self.effect.interval.estimate > 0 else "contradicted"

    def row(self) -> tuple[str, ...]:
        """Cells of the ledger's table."""
        found = self.effect
        return (
            self.text,
            self.source,
            f"**{self.verdict}**",
            f"{found.interval.estimate:+.3f} [{found.interval.low:+.3f}, {found.interval.high:+.3f}] {self.unit}",
            f"{self.p_value:.2g}",
            f"{found.detectable:.3f}" if found.detectable > 0 else "unknown",
        )


Values = Sequence[float] | np.ndarray


def claim(text: str, source: str, worse: Values, better: Values, unit: str = "nats") -> Claim:
    """That `better` has the lower values, pair by pair; its p-value is of this claim alone."""
    effect = paired_difference(worse, better)
    return Claim(text, source, effect, unit, effect.p_value)


def adjusted(claims: Sequence[Claim]) -> list[Claim]:
    """The claims with p-values adjusted for all of them (Holm)."""
    values = holm(np.array([one.p_value for one in claims]))
    return [replace(one, p_value=float(p)) for one, p in zip(claims, values, strict=True)]


def plus_minus(values: Values) -> str:
    """Mean and half width of the 95 % interval over seeds."""
    found = t_interval(values)
    return f"{found.estimate:.3f} ± {(found.high - found.low) / 2:.3f}"


def difference(first: Values, second: Values) -> str:
    """Mean of first minus second, paired, and half width of its 95 % interval."""
    found = paired_difference(first, second).interval
    return f"{found.estimate:+.3f} ± {(found.high - found.low) / 2:.3f}"


def ledger(claims: Sequence[Claim], title: str = "Claims", note: str = "") -> Table:
    """Claims with their verdicts; `note` follows on what is said of all of them."""
    return Table(
        title,
        ("claim", "source", "verdict", "effect, 95 % interval", "p (Holm)", "detectable"),
        tuple(claim.row() for claim in claims),
        (
            "Verdicts follow from the adjusted p-value alone. *Detectable*: the smallest true effect that this many "
            "seeds of this spread would have shown with power 0.8, were its claim the only one tested (unknown where "
            "all seeds give the same); beside others it takes more. More seeds or tasks may decide what is undecided."
            f"{' ' * bool(note)}{note}",
        ),
    )


def page(title: str, introduction: str, tables: Sequence[Table]) -> str:
    """A whole page."""
    return "\n\n".join([f"# {title}", introduction, *(table.markdown() for table in tables)]) + "\n"


def _line(cells: object) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"  # type: ignore[attr-defined]
