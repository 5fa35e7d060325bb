"""A cross-encoder, loaded: pairs of question and passage in, one score a pair out.

Shapes: N pairs, B pairs of a batch, L tokens of its longest pair, C labels.
"""

import inspect
import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from dpr.encoder.compute import Compute
from dpr.encoder.cross_encoder_spec import CrossEncoderSpec
from dpr.encoder.encode import CPU_TOKENS, GPU_TOKENS, start_pool
from dpr.encoder.forward_choice import GPU_THREADS
from dpr.encoder.memory import WithinMemory
from dpr.encoder.network import Forward
from dpr.encoder.padded import batches_by_length, padded
from dpr.encoder.pretrained import known_type, load_weights
from dpr.encoder.tokens import TokenBatch, TowerTokenizer
from dpr.errors import EncoderError


class CrossEncoder:
    """A cross-encoder that is ready to score.

    On a CPU it computes in fp32, and one thread computes each batch, as `dpr.encoder.encode` explains. So a score
    depends on the pairs that it is computed with by rounding alone.
    """

    def __init__(self, spec: CrossEncoderSpec, compute: Compute = Compute()) -> None:
        """Load the model, on a GPU if there is one. Raises EncoderError if it cannot be loaded, or lacks weights."""
        device = torch.device(compute.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        on_cpu = device.type == "cpu"
        dtype = torch.bfloat16 if compute.precision == "bf16" and not on_cpu else torch.float32
        self.spec = spec
        self._tokenizer = TowerTokenizer(spec.tower)
        forward = _PairForward(_load(spec).to(device=device, dtype=dtype), device)
        self._forward: Forward = forward if on_cpu else WithinMemory(forward)
        self._tokens = compute.tokens_per_batch or (CPU_TOKENS[dtype] if on_cpu else GPU_TOKENS)
        self._pool = start_pool((compute.threads or torch.get_num_threads()) if on_cpu else GPU_THREADS)
        self._activation: nn.Module = getattr(nn, spec.activation)()

    def score(self, questions: Sequence[str], passages: Sequence[str]) -> npt.NDArray[np.float64]:
        """Return the scores (N,) of pairs, in their order; higher is better.

        Raises ValueError if there are not as many questions as passages, and EncoderError for a score that is not
        finite.
        """
        tokens = self._tokenizer.passages(questions, passages)
        outputs_NC = np.zeros((len(tokens), self.spec.tower.dim), np.float64)

        def fill(rows_B: npt.NDArray[np.int64]) -> None:
            with torch.inference_mode():
                outputs_NC[rows_B] = self._forward(tokens.select(rows_B)).numpy()

        for _ in self._pool.map(fill, self._forward.batches(tokens.lengths(), self._tokens)):
            pass  # an error in a batch is raised here
        # in float64, in which a sigmoid near 1 still separates two outputs
        scores_N: npt.NDArray[np.float64] = self._activation(torch.from_numpy(outputs_NC))[:, self.spec.label].numpy()
        for row in np.flatnonzero(~np.isfinite(scores_N))[:1].tolist():
            raise EncoderError(
                f"re-ranker {self.spec.name} gives the score {scores_N[row]} to question "
                f"{reprlib.repr(questions[row])} and passage {reprlib.repr(passages[row])}; set rerank.precision to "
                "fp32, or name another model"
            )
        return scores_N


class _PairForward:
    """A Forward that gives the outputs of a classification head for padded batches."""

    def __init__(self, network: Any, device: torch.device) -> None:
        self._network, self._device = network, device
        self._pad_id = int(network.config.pad_token_id)
        # networks with one token type give it to every token, whatever a tokenizer writes
        self._takes_types = (
            "token_type_ids" in inspect.signature(network.forward).parameters
            and getattr(network.config, "type_vocab_size", 0) > 1
        )

    def __call__(self, tokens: TokenBatch) -> Tensor:
        """Return outputs (B, C), float32, on the CPU, in the order of the pairs."""
        ids_BL, types_BL, mask_BL = padded(tokens, self._pad_id)
        inputs = {"input_ids": ids_BL, "attention_mask": np.ones_like(ids_BL) if mask_BL is None else mask_BL}
        if self._takes_types:
            inputs["token_type_ids"] = types_BL
        on_device = {name: torch.from_numpy(array).to(self._device) for name, array in inputs.items()}
        outputs_BC: Tensor = self._network(**on_device).logits
        return outputs_BC.float().cpu()

    def batches(self, lengths_N: npt.NDArray[np.int64], tokens: int) -> list[npt.NDArray[np.int64]]:
        """See Forward."""
        return batches_by_length(lengths_N, tokens)


def _load(spec: CrossEncoderSpec) -> Any:
    tower = spec.tower
    known_type(tower.folder, tower.reference)
    return load_weights(AutoModelForSequenceClassification, tower.folder, tower.reference)
