"""What a model gave must be finite: NaN compares with nothing, and either spoils every mean."""

import numpy as np

from common.errors import UserError


def numbers(values: np.ndarray, what: str) -> np.ndarray:
    """`values` as they are. Raises UserError, naming `what` they are, where one is NaN or infinite."""
    if not np.isfinite(values).all():
        found = "NaN" if np.isnan(values).any() else "infinity"
        raise UserError(
            f"{what}: the model gives {found}, so its weights, or what it computes from them, are not finite: "
            "look at the training it comes from, or at its files; what is finished is kept"
        )
    return values
