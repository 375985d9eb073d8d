"""A file of Inception weights like the published one, which a test machine may not be able to fetch."""

import io
from functools import cache

import torch
from torchvision.models.inception import Inception3


@cache
def random_weights() -> bytes:
    """Random weights of a size that keeps activations of order one."""
    with torch.device("meta"):
        network = Inception3(num_classes=1008, aux_logits=False, init_weights=False)
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, tensor in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(0)
        elif name.endswith(("running_var", "bn.weight")):
            state[name] = torch.rand(tensor.shape, generator=generator) + 0.5
        else:
            fan_in = max(1, torch.Size(tensor.shape[1:]).numel())
            state[name] = torch.randn(tensor.shape, generator=generator) * (2 / fan_in) ** 0.5
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()
