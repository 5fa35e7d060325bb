"""The modules that change pooled vectors, loaded: Dense, LayerNorm and Normalize, always in float32.

Shapes: B rows of a batch, D dimensions.
"""

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dpr.encoder.model_files import weight_files
from dpr.encoder.modules import HeadModule
from dpr.errors import EncoderError


class Dense(nn.Module):
    """A linear layer, its activation, and the input added to it where the module says so."""

    def __init__(self, module: HeadModule) -> None:
        super().__init__()
        self.linear = nn.Linear(module.inputs, module.outputs, bias=module.bias)
        self.activation: nn.Module = getattr(nn, module.activation)()
        self._adds_input = module.residual
        if module.residual and module.inputs != module.outputs:
            self.residual: nn.Module = nn.Linear(module.inputs, module.outputs, bias=False)
        else:
            self.residual = nn.Identity()

    def forward(self, x_BD: Tensor) -> Tensor:
        """Return vectors (B, outputs)."""
        out_BD: Tensor = self.activation(self.linear(x_BD))
        return out_BD + self.residual(x_BD) if self._adds_input else out_BD


class Normalize(nn.Module):
    """Scales vectors to length 1."""

    def forward(self, x_BD: Tensor) -> Tensor:
        """Return vectors of the same shape."""
        return nn.functional.normalize(x_BD, dim=-1)


class LayerNorm(nn.Module):
    """Layer normalisation of pooled vectors."""

    def __init__(self, module: HeadModule) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(module.inputs)

    def forward(self, x_BD: Tensor) -> Tensor:
        """Return vectors of the same shape."""
        normed_BD: Tensor = self.norm(x_BD)
        return normed_BD


def load_head(modules: tuple[HeadModule, ...], reference: str) -> nn.Sequential:
    """Load the modules after the pooling, on the CPU. Raises EncoderError if weights are missing or of other shapes."""
    return nn.Sequential(*(_load(module, reference) for module in modules)).eval()


def _load(module: HeadModule, reference: str) -> nn.Module:
    if module.kind == "Normalize":
        return Normalize()
    made: nn.Module = Dense(module) if module.kind == "Dense" else LayerNorm(module)
    try:
        weights = {
            name: value
            for file in weight_files(module.folder, reference)
            if file.endswith(".safetensors")
            for name, value in load_file(module.folder / file).items()
        }
        made.load_state_dict(weights)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise EncoderError(
            f"model {reference}: the weights of its module {module.kind} in {module.folder} do not fit its config.json "
            f"({' '.join(str(error).split())[:200]}); fetch the whole folder again"
        ) from error
    return made.float()
