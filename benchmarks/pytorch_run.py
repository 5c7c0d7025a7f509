"""A training run of the twin in PyTorch's idiom, on the batches of our own input pipeline. Needs PyTorch."""

import time
from collections.abc import Iterator

import torch  # pyright: ignore[reportMissingImports]
from pytorch_twin import Normalise, ResNet, make_optimizer
from torch.nn.functional import cross_entropy  # pyright: ignore[reportMissingImports]

from jaxresnet.data.batches import Batch, evaluation_batches, train_batches
from jaxresnet.data.sources import open_source
from jaxresnet.data.splits import Split, load_splits
from jaxresnet.learning.optimizer import learning_rate, make_rates
from jaxresnet.plan import Plan
from jaxresnet.runs.records import EpochRecord


class PytorchRun:
    """The run of a plan: `epochs` trains it from its start to its end."""

    def __init__(self, plan: Plan):
        torch.manual_seed(plan.config.seed)
        self._plan = plan
        self._network = ResNet(plan)
        self._network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self._normalise = Normalise(plan.info)
        self._optimizer = make_optimizer(plan, self._network)
        self._rates = make_rates(plan)
        self._step = 0

    def epochs(self) -> Iterator[EpochRecord]:
        """Each epoch's record, as it ends."""
        plan = self._plan
        splits = load_splits(open_source(plan.config.data), {"train", "test"})
        batches = train_batches(plan.config, splits["train"])
        for epoch in range(1, plan.config.epochs + 1):
            began, first = time.monotonic(), self._step
            train_loss, train_accuracy = self._train(batches, plan.end_step(epoch))
            seconds = time.monotonic() - began
            test_loss, test_accuracy = self._evaluate(splits["test"])
            yield EpochRecord(
                epoch=epoch,
                step=self._step,
                learning_rate=self._optimizer.param_groups[0]["lr"],
                train_loss=train_loss,
                train_accuracy=train_accuracy,
                seconds=round(seconds, 3),
                images_per_second=round((self._step - first) * plan.config.batch_size / seconds, 1),
                test_loss=test_loss,
                test_accuracy=test_accuracy,
            )

    def _train(self, batches: Iterator[Batch], end: int) -> tuple[float, float]:
        """Train to a step. Returns loss and accuracy, means over the examples on the way."""
        loss_sum, correct, count = 0.0, 0, 0
        self._network.train()
        while self._step < end:
            batch = next(batches)
            for group in self._optimizer.param_groups:
                group["lr"] = float(learning_rate(self._plan, self._rates, self._step))
            labels = torch.tensor(batch.label).long()
            self._optimizer.zero_grad()
            logits = self._network(self._normalise(torch.tensor(batch.image)))
            loss = cross_entropy(logits, labels)
            loss.backward()
            self._optimizer.step()
            self._step += 1
            loss_sum += loss.item() * len(labels)
            correct += int((logits.argmax(1) == labels).sum())
            count += len(labels)
        return loss_sum / count, correct / count

    def _evaluate(self, split: Split) -> tuple[float, float]:
        """Loss and accuracy on a split."""
        loss_sum, correct = 0.0, 0
        self._network.eval()
        with torch.no_grad():
            for batch in evaluation_batches(split, self._plan.config.batch_size):
                labels = torch.tensor(batch.label[batch.mask]).long()
                logits = self._network(self._normalise(torch.tensor(batch.image[batch.mask])))
                loss_sum += cross_entropy(logits, labels, reduction="sum").item()
                correct += int((logits.argmax(1) == labels).sum())
        return loss_sum / len(split.labels), correct / len(split.labels)
