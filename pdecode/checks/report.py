"""What a check found, in words."""

import textwrap
from typing import Any, NamedTuple

# Of total variations that are enumerated in float32.
CLOSE = 2e-5


class Finding(NamedTuple):
    """One property that was tried."""

    about: str  # "terminates", "row-independent", "one trace", "law", ...
    holds: bool
    says: str  # what was seen, with numbers
    value: float | None = None  # a total variation, where that is what was measured

    def __str__(self) -> str:
        return f"{'yes' if self.holds else 'NO'}: {self.says}"


class Report(NamedTuple):
    """Everything found of one part; `str(report)` is for reading."""

    name: str
    kind: str  # "commit rule", "acceptance rule", "drafter", "decoder", "model", ...
    findings: tuple[Finding, ...]
    claim: str | None = None  # what the part says of itself, if it says anything
    is_claim_true: bool = True

    @property
    def is_well(self) -> bool:
        """Every property holds, and what the part says of itself is true."""
        return self.is_claim_true and all(each.holds for each in self.findings)

    @property
    def faults(self) -> list[str]:
        """Names of what does not hold."""
        found = [each.about for each in self.findings if not each.holds]
        return found if self.is_claim_true else [*found, "claim"]

    def __getitem__(self, about: Any) -> Any:
        """A finding by its name."""
        if isinstance(about, str):
            return next(each for each in self.findings if each.about == about)
        return tuple.__getitem__(self, about)

    def __str__(self) -> str:
        width = max(len(each.about) for each in self.findings)
        lines = [f"{self.name} ({self.kind})"]
        for each in self.findings:
            mark = "yes" if each.holds else "NO"
            head = f"  {mark:4}{each.about:{width}}  "
            lines += textwrap.wrap(
                each.says, 88, initial_indent=head, subsequent_indent=" " * len(head)
            )
        if self.claim is not None:
            word = "agrees" if self.is_claim_true else "NO: that is not so"
            lines.append(f"  it says of itself: {self.claim} ({word})")
        return "\n".join(lines)

    __repr__ = __str__

    def asdict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "name": self.name,
            "kind": self.kind,
            "is_well": self.is_well,
            "faults": self.faults,
            "findings": [each._asdict() for each in self.findings],
            "claim": self.claim,
            "is_claim_true": self.is_claim_true,
        }


def string(tokens) -> str:
    """Tokens as they stand in a sentence."""
    return " ".join(str(int(token)) for token in tokens)
