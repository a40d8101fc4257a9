"""What others' tensors are held against before a network is built of them."""

from collections.abc import Generator
from contextlib import contextmanager

from torch import Tensor

from cartok.core.errors import UserError


@contextmanager
def told_by_shapes(kind: str) -> Generator[None]:
    """Where a config is read from the shapes of tensors: what fits none is refused in one line.

    Raises:
        UserError: a tensor is missing, or of a shape that no network of this kind has.
    """
    try:
        yield
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f"a {kind} needs a tensor named {error}, but the file has none") from None
    except (ValueError, IndexError, TypeError, ZeroDivisionError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"the shapes of its tensors tell how a {kind} is built, but these are of none "
            f"({reason}); it cannot be imported"
        ) from None


def refuse_unusable(tensors: dict[str, Tensor]) -> None:
    """Refuses weights that are no fractions, or not finite.

    Raises:
        UserError: names the first such tensor.
    """
    for name, value in tensors.items():
        if not value.is_floating_point():
            raise UserError(
                f"weights are floating point numbers, but {name} is of {value.dtype}; "
                "it cannot be imported"
            )
        if not value.isfinite().all():
            raise UserError(
                f"weights are finite, but {name} holds NaN or infinity; "
                "take a checkpoint from before its training failed"
            )
