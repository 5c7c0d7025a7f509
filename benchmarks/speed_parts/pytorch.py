"""The steps in PyTorch's idiom, of the same network on the same arrays. Importing it needs PyTorch."""

import time

import torch  # pyright: ignore[reportMissingImports]
from pytorch_twin import Normalise, ResNet, make_optimizer

from jaxresnet.plan import Plan
from speed_parts.timing import Contender, random_batch


class PytorchSteps:
    """The twin's two steps on a device, "cpu" or "cuda"; normalisation is part of them, as it is of ours."""

    def __init__(self, plan: Plan, compiled: bool, device: str):
        self._device = device
        self._network = ResNet(plan).to(device)
        self._network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self._forward = torch.compile(self._network) if compiled else self._network
        self._normalise = Normalise(plan.info).to(device)
        self._optimizer = make_optimizer(plan, self._network)
        batch = random_batch(plan)
        self._images = torch.from_numpy(batch.image).to(device)
        self._labels = torch.from_numpy(batch.label).long().to(device)
        self._autocast = torch.autocast(device, torch.bfloat16, enabled=plan.config.precision == "bfloat16")

    def train(self, steps: int) -> None:
        """Take steps and wait for them."""
        self._network.train()
        for _ in range(steps):
            self._optimizer.zero_grad()
            with self._autocast:
                loss = torch.nn.functional.cross_entropy(
                    self._forward(self._normalise(self._images)), self._labels
                )
            loss.backward()
            self._optimizer.step()
        self._wait()

    def evaluate(self, steps: int) -> None:
        """Evaluate the batch that often and wait for it."""
        self._network.eval()
        with torch.no_grad(), self._autocast:
            for _ in range(steps):
                self._forward(self._normalise(self._images))
        self._wait()

    def _wait(self) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()


def pytorch_contender(plan: Plan, compiled: bool, device: str) -> Contender:
    """The twin, compiled or not, in the plan's precision."""
    precision = plan.config.precision
    torch.set_float32_matmul_precision("high" if precision == "tensorfloat32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tensorfloat32"
    torch.backends.cudnn.benchmark = True
    steps = PytorchSteps(plan, compiled, device)
    began = time.monotonic()
    steps.train(1)
    steps.evaluate(1)
    facts = {"compile_seconds": round(time.monotonic() - began, 1), "threads": torch.get_num_threads()}
    name = f"PyTorch {precision}, {'compiled' if compiled else 'eager'}"
    return Contender(name, steps.train, steps.evaluate, facts)
