"""What the settings of every method have in common: a run's own flags, presets, and hosted models with a budget.

Loads no jax, so that a command line is parsed and checked in well under a second.
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, TypeVar

from common.backends.budget import Budget
from common.cli import flag, flag_name
from common.errors import UserError

C = TypeVar("C", bound="RunSettings")
T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Flags of every run. A method's Config inherits them and gives `run_dir` a default of its own."""

    UNSTORED: ClassVar[tuple[str, ...]] = ("run_dir", "dry_run")
    """Settings that decide no result, so that a run may be continued with others."""

    seed: int = flag(0, "random seed of everything")
    run_dir: str = flag("runs/seedloop", "folder or URL of the run; the same command continues it")
    dry_run: bool = flag(False, "show the plan and stop")

    def stored(self) -> dict[str, Any]:
        """What the run directory records: everything that decides the results."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in self.UNSTORED}


def filled(config: C, defaults: Mapping[str, Any]) -> C:
    """`config` with those of `defaults` that it leaves open (None)."""
    # None alone counts as open: a setting that was given stays, 0 and False included.
    missing = {name: value for name, value in defaults.items() if getattr(config, name) is None}
    return dataclasses.replace(config, **missing)


def given(value: T | None) -> T:
    """A setting that `resolved()` has filled."""
    assert value is not None, "settings are read before resolved() has filled them"
    return value


def preset(kind: type[C], presets: Mapping[str, Mapping[str, Any]], name: str, settings: Mapping[str, Any]) -> C:
    """The settings of a preset with `settings` in place of its own. Raises UserError for an unknown name."""
    check_preset(presets, name)
    # The later ones win: what is given takes the place of the preset's own.
    return kind(**{**presets[name], **settings, "preset": name})


def check_preset(presets: Mapping[str, Any], name: str) -> None:
    """Raises UserError for an unknown name."""
    if name not in presets:
        raise UserError(f"unknown preset {name!r}: there are {', '.join(presets)}")


def check_files(config: Any, fields: Iterable[str]) -> None:
    """Raises UserError, naming the flag, for a file that is not there. None is left out."""
    for name in fields:
        file = getattr(config, name)
        if file is not None and not pathlib.Path(file).is_file():
            raise UserError(f"no such file: {file} (given as {flag_name(name)})")


def hosted_share(config: Any, role: str, named: Iterable[str], parts: int) -> Budget | None:
    """What each of `parts` accounts may spend on hosted models of `role`, from the settings ROLE_url, budget and
    ROLE_price; None without a budget.

    `named`: the models given for that role. Raises UserError for such settings without a hosted one among them,
    and for a budget or price that cannot be read or shared.
    """
    hosted = any(name.startswith("openai:") for name in named)
    for field in (f"{role}_url", "budget", f"{role}_price"):
        if getattr(config, field) is not None and not hosted:
            raise UserError(f"{flag_name(field)} is for a hosted {role}: use it with --{role} openai:MODEL")
    price = getattr(config, f"{role}_price")
    if price is not None:
        # Without a budget nothing else reads the price, and a wrong one would pass.
        Budget.parse("calls=1", price)
    return None if config.budget is None else Budget.parse(config.budget, price).share(parts)
