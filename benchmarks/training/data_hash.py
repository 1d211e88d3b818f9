"""What a training read, and in which order, as a hash: a reader can see that all layouts were taught the same."""

from __future__ import annotations

import dataclasses
import hashlib

from ..tasks import Batch


@dataclasses.dataclass
class DataHash:
    """A chain over the batches so far, each whole: however many processes share it, every one of them sees the same.

    sha256: in hex, of the value before and the batch's token ids, targets and document starts, with shapes and dtypes.
    prefixes: `[batches, sha256]` after 1, 2, 4, ... batches, so that trainings of which one stopped earlier compare as
    far as both went.
    """

    sha256: str = hashlib.sha256().hexdigest()
    batches: int = 0
    tokens: int = 0
    prefixes: list[list[int | str]] = dataclasses.field(default_factory=list)

    def add(self, batch: Batch) -> None:
        """Note the next batch, which is on the CPU."""
        digest = hashlib.sha256(bytes.fromhex(self.sha256))
        for tensor in (batch.tokens, batch.targets, batch.documents):
            array = tensor.contiguous().numpy()
            digest.update(f"{array.dtype.str} {array.shape}".encode())
            digest.update(array.data)
        self.sha256 = digest.hexdigest()
        self.batches += 1
        self.tokens += batch.tokens.numel()
        if self.batches & (self.batches - 1) == 0:
            self.prefixes.append([self.batches, self.sha256])
