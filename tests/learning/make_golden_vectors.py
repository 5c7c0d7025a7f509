"""Write golden_vectors.npz: what PyTorch makes of a tiny network in three steps, for tests without PyTorch.

    PYTHONPATH=tests:benchmarks python tests/learning/make_golden_vectors.py

Everything is computed in float64 from seeded random numbers and stored in float32; images and labels as they are.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytorch_twin
import torch
from test_golden_vectors import PLAN

PATH = Path(__file__).parent / "golden_vectors.npz"


def main() -> None:
    info, steps = PLAN.info, 3
    torch.manual_seed(0)
    network = pytorch_twin.ResNet(PLAN).double()
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point() and tensor.ndim == 1:
                tensor.add_(0.2 * torch.rand_like(tensor))
    # In float32, so that both sides start from the same numbers.
    network.load_state_dict({k: v.float().to(v.dtype) for k, v in network.state_dict().items()})
    images = np.random.default_rng(0).integers(0, 256, (steps, 8, 32, 32, 3), dtype=np.uint8)
    labels = np.random.default_rng(1).integers(0, 10, (steps, 8), dtype=np.int32)
    inputs = (images / 255 - np.array(info.mean)) / np.array(info.std)
    inputs = torch.from_numpy(inputs).permute(0, 1, 4, 2, 3)

    arrays = {"images": images, "labels": labels} | snapshot("initial", network)
    network.eval()
    arrays["eval_logits"] = network(inputs[0]).detach().numpy()
    network.train()
    optimizer, losses = pytorch_twin.make_optimizer(PLAN, network), []
    for step in range(steps):
        loss = torch.nn.functional.cross_entropy(network(inputs[step]), torch.from_numpy(labels[step]).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        arrays |= snapshot(f"step{step + 1}", network) if step in (0, steps - 1) else {}
    arrays["losses"] = np.array(losses)
    stored: dict[str, Any] = {
        name: array.astype(np.float32) if array.dtype == np.float64 else array
        for name, array in arrays.items()
    }
    np.savez_compressed(PATH, **stored)
    print(f"{PATH.name}: {PATH.stat().st_size:,} bytes, losses {losses}")


def snapshot(prefix: str, network: torch.nn.Module) -> dict[str, np.ndarray]:
    """The state dict's arrays as they are now."""
    return {
        f"{prefix}/{name}": tensor.double().numpy().copy()
        for name, tensor in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


if __name__ == "__main__":
    main()
