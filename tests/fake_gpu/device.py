"""A pretended GPU: tensors that say ``cuda`` and compute on the CPU.

torch's own fake tensors cannot differentiate on ``cuda`` where torch is built for the CPU, and have
no numbers, so code whose course depends on numbers stops. A tensor of this device says ``cuda:0``
and holds a CPU tensor. Every operation on it runs on the CPU, so its results are the CPU's; what a
GPU does not forgive is refused or counted:

- operands of both devices in one operation (CPU scalars and CPU indices are allowed, as in torch);
- reads, in which the host waits for the device: ``.item()``, ``.cpu()``, ``nonzero``, a mask as
  index, and whatever else has a result whose shape depends on numbers;
- operations that ``torch.use_deterministic_algorithms(True)`` refuses on CUDA, and sums of floats
  in any order (``index_add`` and the like), which repeat only under that switch.
"""

import sys
import warnings
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

import sidrec

GPU = torch.device("cuda", 0)
_PACKAGE = str(Path(sidrec.__file__).parent)
_META = torch.device("meta")  # what autograd sees: a device that needs no driver
aten, c10d = torch.ops.aten, torch.ops.c10d

_READS = {  # results whose shape depends on numbers, and numbers themselves
    *(aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.is_nonzero),
    *(aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.bincount, aten.histc),
    *(aten._linalg_eigh, aten.linalg_inv_ex, aten.linalg_cholesky_ex),
}
_WITH_INDEX = {aten.index, aten.index_put, aten.index_put_, aten._unsafe_index}
_CPU_OPERANDS = _WITH_INDEX | {aten.copy_, aten._to_copy, aten.lift_fresh, aten.set_}
_ANY_ORDER = {aten.index_add, aten.index_add_, aten.scatter_add, aten.scatter_add_}
_GET_SET = (Tensor.__getitem__, Tensor.__setitem__)
_INDEX_PUT = {aten.index_put, aten.index_put_}
_RUNNING_SUMS = {aten.cumsum, aten.cumsum_}
_REFUSED = {  # by use_deterministic_algorithms, whatever the operands
    *(aten.put_, aten.histc, aten.median, aten.nanmedian, aten.kthvalue, aten.nll_loss2d_forward),
    *(aten.grid_sampler_2d_backward, aten.upsample_linear1d_backward),
}


class OnGpu(Tensor):
    """A CPU tensor that says it lies on the GPU."""

    @staticmethod
    def __new__(cls, held):
        return Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=_META,
            requires_grad=False,
        )

    def __init__(self, held):
        self.held = held

    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)

    def __repr__(self, **_):
        return f"OnGpu({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} on the pretended GPU, outside of pretended_gpu()")


def is_gpu(device):
    return isinstance(device, (str, torch.device)) and torch.device(device).type in ("cuda", "meta")


class _Devices(TorchFunctionMode):
    """Take ``cuda`` for the pretended device, before torch looks for a driver."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is Tensor.tolist and isinstance(args[0], OnGpu):
            return args[0].cpu().tolist()
        if func is Tensor.new_tensor and isinstance(args[0], OnGpu):
            kwargs = {"dtype": args[0].dtype, "device": GPU} | kwargs
            func, args = torch.tensor, args[1:]
        if func in _GET_SET and isinstance(args[0], OnGpu) and isinstance(args[1], list):
            args = (args[0], torch.tensor(args[1]), *args[2:])  # else torch makes it on meta
        if func is Tensor.numpy and isinstance(args[0], OnGpu):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if func is Tensor.pin_memory:
            return args[0]
        has_tensors = any(isinstance(leaf, Tensor) for leaf in tree_leaves((args, kwargs)))
        if not has_tensors and is_gpu(kwargs.get("device")):
            made = func(*args, **kwargs | {"device": "cpu"})
            return made.to(_META)
        args, kwargs = (
            tree_map(lambda x: _META if _names_gpu(x) else x, part) for part in (args, kwargs)
        )
        return func(*args, **kwargs)


def to_gpu(batch):
    """Return a NamedTuple with its tensors on the device, as Lightning moves a batch."""
    moved = (
        to_gpu(one) if isinstance(one, tuple) and hasattr(one, "_fields") else one for one in batch
    )
    return type(batch)(*(one.to(GPU) if isinstance(one, Tensor) else one for one in moved))


def move(module):
    """Move a module to the device and return it; tied weights stay one weight, as in torch."""
    made = {}
    for one in module.modules():
        for name, weight in one._parameters.items():
            if weight is None:
                continue
            if id(weight) not in made:  # the old one is kept, so that its id stays its own
                own = torch.nn.Parameter(weight.data.to(GPU), requires_grad=weight.requires_grad)
                made[id(weight)] = weight, own
            one._parameters[name] = made[id(weight)][1]
        for name, buffer in one._buffers.items():
            one._buffers[name] = None if buffer is None else buffer.to(GPU)
    return module


def _names_gpu(leaf):
    if isinstance(leaf, torch.device):
        return leaf.type == "cuda"
    return isinstance(leaf, str) and leaf.split(":")[0] == "cuda"


class Gpu(TorchDispatchMode):
    """The pretended device.

    Attributes:
        reads: How often the host waited for the device, by operation.
        places: The same by the function of sidrec that asked.
        collectives: Collective operations, by name.
        any_order: Sums of floats whose order a GPU fixes only under the switch, by operation.
        num_operations: Number of operations: a kernel each, or more.
    """

    def __init__(self, *, deterministic):
        super().__init__()
        self.deterministic = deterministic
        self.reset()

    def reset(self):
        """Count from now on."""
        self.num_operations = 0
        self.reads, self.places = Counter(), Counter()
        self.collectives, self.any_order = Counter(), Counter()

    @property
    def num_reads(self):
        return sum(self.reads.values())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        wanted = kwargs.get("device")
        if not is_gpu(wanted) and not any(isinstance(one, OnGpu) for one in tensors):
            return func(*args, **kwargs)
        packet = func.overloadpacket
        to_cpu = wanted is not None and not is_gpu(wanted)
        self._judge(packet, args, kwargs, tensors, to_cpu=to_cpu)
        self.num_operations += 1
        if wanted is not None:
            kwargs["device"] = torch.device("cpu")
        held_args, held_kwargs = tree_map_only(OnGpu, lambda one: one.held, (args, kwargs))
        found = func(*held_args, **held_kwargs)
        return found if to_cpu else self._wrapped(found, (args, kwargs))

    def _wrapped(self, found, args):
        """Return results on the device; what was changed in place is the argument itself."""
        given = {id(one.held): one for one in tree_leaves(args) if isinstance(one, OnGpu)}
        return tree_map_only(
            Tensor, lambda one: given[id(one)] if id(one) in given else OnGpu(one), found
        )

    def _judge(self, packet, args, kwargs, tensors, *, to_cpu):
        """Refuse or count what a GPU does not forgive."""
        theirs = [one for one in tensors if not isinstance(one, OnGpu) and one.ndim]
        if theirs and packet not in _CPU_OPERANDS and packet._qualified_op_name[:4] != "c10d":
            raise RuntimeError(f"{packet}: operands on cuda:0 and on the CPU {theirs[0].shape}")
        if packet._qualified_op_name.startswith("c10d"):
            self.collectives[packet.__name__.strip("_")] += 1
        self._judge_reads(packet, args, kwargs, to_cpu=to_cpu)
        if args and isinstance(args[0], Tensor) and args[0].is_floating_point():
            self._judge_order(packet, args, kwargs)
        is_weighted = packet is aten.bincount and len(args) > 1 and args[1] is not None
        if packet in _REFUSED or is_weighted:
            self._refuse(packet)

    def _judge_reads(self, packet, args, kwargs, *, to_cpu):
        """Count what the host waits for."""
        if packet in _READS:
            self._count_read(packet.__name__)
        if packet is aten._to_copy and to_cpu and not kwargs.get("non_blocking"):
            self._count_read("to_cpu")
        if packet is aten.copy_ and not isinstance(args[0], OnGpu):
            self._count_read("to_cpu")
        if packet in _WITH_INDEX:
            masks = [one for one in tree_leaves(args[1]) if isinstance(one, OnGpu)]
            for _ in (one for one in masks if one.dtype == torch.bool):
                self._count_read("mask_as_index")

    def _judge_order(self, packet, args, kwargs):
        """Look at sums of floats, whose result depends on their order."""
        adds = packet in _INDEX_PUT and len(args) > 3 and args[3]
        if packet in _ANY_ORDER or adds:
            self.any_order[packet.__name__.strip("_")] += 1
        dtype = kwargs.get("dtype")
        if packet in _RUNNING_SUMS and (dtype is None or dtype.is_floating_point):
            self._refuse(packet)

    def _refuse(self, packet):
        if self.deterministic:
            raise RuntimeError(f"{packet} does not have a deterministic implementation on CUDA")

    def _count_read(self, name):
        self.reads[name] += 1
        self.places[f"{_place()} {name}"] += 1


def _place():
    """Return the function of sidrec that is at work."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename.startswith(_PACKAGE):
            return f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}"
        frame = frame.f_back
    return "?"


class Event:
    """Stand-in for ``torch.cuda.Event``: waiting for it is not waiting for all work."""

    def record(self):
        pass

    def synchronize(self):
        pass


def _without_gradients(mode):
    """Stand-in for inference mode, which would not show the parts of an operation."""
    return torch.set_grad_enabled(not mode)


@contextmanager
def pretended_gpu(*, deterministic=True):
    """Let ``cuda`` name the pretended device inside the block."""
    free = (1 << 30, 1 << 30)
    stand_ins = {
        (torch.cuda, "Event"): Event,
        (torch.cuda, "_lazy_init"): lambda: None,
        (torch.cuda, "mem_get_info"): lambda *_: free,
        (torch._C, "_InferenceMode"): _without_gradients,
    }
    real = {place: getattr(*place) for place in stand_ins}
    for place, stand_in in stand_ins.items():
        setattr(*place, stand_in)
    gpu, was = Gpu(deterministic=deterministic), torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(deterministic)
    try:
        with warnings.catch_warnings(), gpu, _Devices():
            warnings.filterwarnings("ignore", message=".*CUDA is not available")
            yield gpu
    finally:
        torch.use_deterministic_algorithms(was)
        for place, own in real.items():
            setattr(*place, own)
