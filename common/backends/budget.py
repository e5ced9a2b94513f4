"""Limits on what may be bought: calls, tokens, money. Imports nothing heavy: settings are checked early.

budget = Budget.parse("calls=500,usd=2.5", price="0.15,0.6")
budget.covers(spent + estimate)
"""

import dataclasses
from typing import Any

from common.errors import UserError, meant, quoted

LIMITS = ("calls", "tokens", "usd")
MOST = 10**12
"""Of anything that is counted here; no account holds as much."""
BUDGET_SPENT = "budget spent"
"""How the error of records begins that were not bought because the budget does not cover them; the names of the
limits that were reached follow."""


def unpaid(error: str | None) -> bool:
    """Whether that is the error of a record that was not bought."""
    return error is not None and error.startswith(BUDGET_SPENT)


@dataclasses.dataclass(frozen=True)
class Spent:
    """What was bought, or may be: paid replies, tokens sent and tokens received."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(
            self.calls + other.calls,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )


@dataclasses.dataclass(frozen=True)
class Budget:
    """Limits, each optional; without any, everything is covered.

    `tokens` counts both directions; `price` is US dollars for a million prompt and a million completion tokens.
    Raises UserError for a limit that is not above 0 and for `usd` without a price.
    """

    calls: int | None = None
    tokens: int | None = None
    usd: float | None = None
    price: tuple[float, float] | None = None

    def __post_init__(self):
        for name in ("calls", "tokens", "usd"):
            limit = getattr(self, name)
            if limit is not None and not 0 < limit <= MOST:
                raise UserError(f"budget {name}={quoted(limit)} must be above 0 and at most {MOST}")
        if self.price is not None and not all(0 <= p <= MOST for p in self.price):
            raise UserError(f"price {self.price[0]},{self.price[1]} must not be below 0, nor above {MOST}")
        if self.usd is not None and (self.price is None or not any(self.price)):
            raise UserError(
                f"budget usd={self.usd} needs a price: give US dollars for a million prompt and a million "
                "completion tokens, such as 0.15,0.6"
            )

    @classmethod
    def parse(cls, text: str, price: str | None = None) -> "Budget":
        """Read "calls=500,tokens=200000,usd=2.5" and a price "0.15,0.6". Raises UserError."""
        limits: dict[str, Any] = {}
        for part in text.split(","):
            name, _, value = (piece.strip() for piece in part.partition("="))
            if name not in LIMITS or name in limits:
                hint = "" if name in limits else meant(name, LIMITS)
                raise UserError(f"budget {text!r}: give calls=N, tokens=N, usd=X, each once at most{hint}")
            try:
                limits[name] = float(value) if name == "usd" else int(value)
            except ValueError:
                kind = "a number" if name == "usd" else "a whole number"
                raise UserError(f"budget {text!r}: {name} must be {kind}, not {value!r}") from None
        return cls(**limits, price=None if price is None else _price(price))

    def share(self, count: int) -> "Budget":
        """One of `count` equal parts. Raises UserError when a part would hold no call or token."""
        parts = {name: None if limit is None else limit // count for name, limit in self._whole().items()}
        for name, part in parts.items():
            if part == 0:
                raise UserError(f"budget {name}={getattr(self, name)} cannot be shared by {count}: raise it")
        return dataclasses.replace(self, **parts, usd=None if self.usd is None else self.usd / count)

    def cost(self, spent: Spent) -> float:
        """US dollars, 0 without a price."""
        prompt, completion = self.price or (0.0, 0.0)
        return (spent.prompt_tokens * prompt + spent.completion_tokens * completion) / 1e6

    def covers(self, spent: Spent) -> bool:
        """Whether that much lies within every limit."""
        return not self.short(spent)

    def short(self, spent: Spent) -> list[str]:
        """The names of the limits that it exceeds."""
        used = {"calls": spent.calls, "tokens": spent.prompt_tokens + spent.completion_tokens}
        over = {name: limit is not None and used[name] > limit for name, limit in self._whole().items()}
        over["usd"] = self.usd is not None and self.cost(spent) > self.usd * (1 + 1e-9)  # sums of floats
        return [name for name, exceeded in over.items() if exceeded]

    def check(self, least: Spent, what: str) -> None:
        """Raises UserError where this share of an account does not even cover `least`, what `what` may take."""
        if short := self.short(least):
            tokens = least.prompt_tokens + least.completion_tokens
            calls = "a call" if least.calls == 1 else f"{least.calls} calls"
            raise UserError(
                f"--budget buys nothing: {what} may take {calls} and {tokens} tokens, which the "
                f"{' and '.join(f'{name}={getattr(self, name):g}' for name in short)} of an account do not cover; "
                f"raise {' and '.join(short)}"
            )

    def _whole(self) -> dict[str, int | None]:
        return {"calls": self.calls, "tokens": self.tokens}


def _price(text: str) -> tuple[float, float]:
    try:
        prompt, completion = (float(part) for part in text.split(","))
    except ValueError:
        raise UserError(
            f"price {text!r}: give US dollars for a million prompt and completion tokens, such as 0.15,0.6"
        ) from None
    return prompt, completion
