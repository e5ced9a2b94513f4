"""What a model gave must be numbers: NaN compares with nothing and spoils every mean."""

import numpy as np

from common.errors import UserError


def numbers(values: np.ndarray, what: str) -> np.ndarray:
    """`values` as they are. Raises UserError, naming `what` they are, where one is NaN."""
    if np.isnan(values).any():
        raise UserError(
            f"{what}: the model gives NaN, so its weights, or what it computes from them, are not finite: look at "
            "the training it comes from, or at its files; what is finished is kept"
        )
    return values
