"""What a model answered: its outputs as arrays, and which version gave them."""

from typing import TYPE_CHECKING, Any

import msgspec

from interlock.core.errors import UnknownOutput
from interlock.core.model import Array

if TYPE_CHECKING:
    import pandas as pd


class Prediction(msgspec.Struct, frozen=True, eq=False):
    """One answer. `outputs`: name to array; texts are objects: `str`, None where one is missing, `bytes`
    where it is no UTF-8. `request_id`: the server's own, by which feedback is sent and questions are asked;
    None from a server that makes none. `client_id`: the `id` that was sent."""

    model: str
    version: str
    outputs: dict[str, Array]
    request_id: str | None = None
    client_id: str | None = None

    def __getitem__(self, name: str) -> Array:
        try:
            return self.outputs[name]
        except KeyError:
            raise UnknownOutput(
                f"model '{self.model}' version {self.version} gave no output {name!r}; it gave "
                f"{', '.join(self.outputs)}"
            ) from None

    @property
    def array(self) -> Array:
        """The only output.

        Raises: UnknownOutput if there are several.
        """
        if len(self.outputs) != 1:
            raise UnknownOutput(
                f"model '{self.model}' gave {len(self.outputs)} outputs: name one of "
                f"{', '.join(self.outputs)}, as in answer['{next(iter(self.outputs), '')}']"
            )
        return next(iter(self.outputs.values()))

    def frame(self) -> "pd.DataFrame":
        """All outputs as a DataFrame, one line a row: an output of n values a row has n columns, named
        `name_0` and so on; one of more axes has arrays in one column."""
        import pandas as pd

        columns: dict[str, Any] = {}
        for name, array in self.outputs.items():
            if array.ndim <= 1:
                columns[name] = array.reshape(-1)
            elif array.ndim == 2:
                width = array.shape[1]
                names = [name] if width == 1 else [f"{name}_{at}" for at in range(width)]
                columns.update(zip(names, array.T, strict=True))
            else:
                columns[name] = list(array)
        return pd.DataFrame(columns)
