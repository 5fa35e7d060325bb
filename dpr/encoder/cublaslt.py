"""Products of fp8 matrices by NVIDIA's cuBLASLt, with what PyTorch's `_scaled_mm` lacks.

That is an activation whose result is fp8 again, and a residual: each would be a pass over memory of its own. The
library is the one that PyTorch has loaded, called by its C interface (cublasLtMatmul in NVIDIA's documentation).

Shapes: T tokens, I inputs and J outputs of a product. The library counts by columns, so that a matrix of T rows in
PyTorch's memory is one of T columns to it.
"""

import ctypes
from ctypes import byref, c_float, c_int, c_int64, c_size_t, c_uint64, c_void_p
from typing import Any

import torch
from torch import Tensor

WORKSPACE_BYTES = 32 * 2**20
"""Memory that a product may use beside its matrices; NVIDIA advises this for Hopper."""
_F32, _BF16, _FP8 = 0, 14, 28
_COMPUTE_F32 = 68
_TYPES = {torch.bfloat16: _BF16, torch.float8_e4m3fn: _FP8}
_TRANS_A, _EPILOGUE, _BIAS, _D_SCALE, _FAST_ACCUMULATION, _BIAS_TYPE = 3, 7, 8, 20, 25, 26
_LAYOUT_COLUMNS, _MAX_WORKSPACE = 3, 1
_WITH_BIAS = 4
_EPILOGUES = {"none": 0, "relu": 2, "gelu": 32}
"""What follows a product; GELU is the approximation with tanh."""


class _Found(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t: a way to compute a product."""

    _fields_ = (
        ("algorithm", c_uint64 * 8),
        ("workspace", c_size_t),
        ("state", c_int),
        ("waves", c_float),
        ("reserved", c_int * 4),
    )


class Fp8Products:
    """The products of one GPU; one thread at a time may use them. Raises RuntimeError where the library refuses."""

    def __init__(self, device: torch.device) -> None:
        if torch.version.cuda is None:
            raise RuntimeError("this PyTorch has no CUDA")
        self._library = ctypes.CDLL(f"libcublasLt.so.{torch.version.cuda.partition('.')[0]}")
        self._handle, self._preference = c_void_p(), c_void_p()
        self._call("cublasLtCreate", byref(self._handle))
        self._call("cublasLtMatmulPreferenceCreate", byref(self._preference))
        limit = c_uint64(WORKSPACE_BYTES)
        self._call("cublasLtMatmulPreferenceSetAttribute", self._preference, _MAX_WORKSPACE, byref(limit), c_size_t(8))
        self._workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        self._plans: dict[tuple[object, ...], _Plan] = {}

    def multiply(
        self,
        x_TI: Tensor,
        weight_JI: Tensor,
        factor: float,
        out_TJ: Tensor,
        *,
        bias_J: Tensor | None = None,
        act: str = "none",
        out_factor: Tensor | None = None,
        add: bool = False,
    ) -> Tensor:
        """Write act(x @ weight.T * factor + bias) into `out`, times `out_factor`; if `add`, add what stands there.

        x and weight are fp8 (e4m3), `out` is bf16 or fp8, `bias` (J,) is bf16, `out_factor` is one float32 on the GPU,
        for a result in fp8.
        """
        (tokens, inputs), outputs = x_TI.shape, len(weight_JI)
        key = (inputs, outputs, out_TJ.dtype, act, bias_J is not None)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = _Plan(
                self._call, inputs, outputs, out_TJ.dtype, act, with_bias=bias_J is not None
            )
        if bias_J is not None:
            plan.point(_BIAS, bias_J)
        if out_factor is not None:
            plan.point(_D_SCALE, out_factor)
        algorithm = plan.algorithm(self._handle, self._preference, tokens)
        out, result = c_void_p(out_TJ.data_ptr()), plan.result
        self._call(
            "cublasLtMatmul", self._handle, plan.product, byref(c_float(factor)),
            c_void_p(weight_JI.data_ptr()), plan.weight, c_void_p(x_TI.data_ptr()), plan.x,
            byref(c_float(add)), out if add else None, plan.added, out, result, byref(algorithm),
            c_void_p(self._workspace.data_ptr()), c_size_t(WORKSPACE_BYTES),
            c_void_p(torch.cuda.current_stream().cuda_stream),
        )  # fmt: skip
        return out_TJ

    def _call(self, name: str, *values: Any) -> None:
        status = getattr(self._library, name)(*values)
        if status:
            raise RuntimeError(f"{name} of cuBLASLt returned status {status}")


class _Plan:
    """The library's description of one product, kept for all batches; only the number of tokens changes."""

    def __init__(self, call: Any, inputs: int, outputs: int, out: torch.dtype, act: str, *, with_bias: bool) -> None:
        self._call = call
        self.product = c_void_p()
        call("cublasLtMatmulDescCreate", byref(self.product), _COMPUTE_F32, _F32)
        self._set(_TRANS_A, c_int(1))
        self._set(_FAST_ACCUMULATION, ctypes.c_int8(1))
        self._set(_EPILOGUE, c_int((_EPILOGUES[act] | (_WITH_BIAS if with_bias else 0)) or 1))
        if with_bias:
            self._set(_BIAS_TYPE, c_int(_BF16))
        self.weight = self._layout(_FP8, inputs, outputs)
        self.x = self._layout(_FP8, inputs, 1)
        self.result = self._layout(_TYPES[out], outputs, 1)
        self.added = self._layout(_BF16, outputs, 1)
        self._tokens, self._found = 0, _Found()

    def algorithm(self, handle: c_void_p, preference: c_void_p, tokens: int) -> Any:
        """Return how a product of so many tokens is computed."""
        if tokens != self._tokens:
            for layout in (self.x, self.result, self.added):
                columns = c_uint64(tokens)
                self._call("cublasLtMatrixLayoutSetAttribute", layout, _LAYOUT_COLUMNS, byref(columns), c_size_t(8))
            count, found = c_int(), _Found()
            self._call(
                "cublasLtMatmulAlgoGetHeuristic", handle, self.product, self.weight, self.x, self.added, self.result,
                preference, 1, byref(found), byref(count),
            )  # fmt: skip
            if not count.value:
                raise RuntimeError("cuBLASLt has no algorithm for this product of fp8")
            self._tokens, self._found = tokens, found
        return self._found.algorithm

    def point(self, attribute: int, values: Tensor) -> None:
        """Set an attribute that is a place in the GPU's memory."""
        self._set(attribute, c_void_p(values.data_ptr()))

    def _set(self, attribute: int, value: Any) -> None:
        size = c_size_t(ctypes.sizeof(value))
        self._call("cublasLtMatmulDescSetAttribute", self.product, attribute, byref(value), size)

    def _layout(self, kind: int, rows: int, columns: int) -> c_void_p:
        layout = c_void_p()
        self._call("cublasLtMatrixLayoutCreate", byref(layout), kind, c_uint64(rows), c_uint64(columns), c_int64(rows))
        return layout
