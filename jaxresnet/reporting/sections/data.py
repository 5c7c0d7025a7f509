"""The data of a run, as far as it is still that of its training."""

from dataclasses import dataclass

from jaxresnet.data.sources import reopen_source
from jaxresnet.data.splits import Source, Split, changed_data, load_split
from jaxresnet.errors import UserError
from jaxresnet.plan import Plan


@dataclass(frozen=True)
class RunData:
    """The data set of a run's `plan`. `source` is None if it cannot be used any more, and `problem` says why."""

    plan: Plan
    source: Source | None
    problem: str = ""

    def load(self, split: str) -> Split:
        """One split: "train", which is without the hold-out, "validation" or "test". Raises UserError."""
        if self.source is None:
            raise UserError(self.problem)
        examples = self.plan.config.data.validation_examples
        return load_split(self.source, split, examples, expected=self.plan.info)


def find_data(plan: Plan, data_dir: str = "") -> RunData:
    """The data of a run, which is in `data_dir` if that is given.

    Unless the data set is known in advance, all images are read and compared with those of the training.
    """
    try:
        source = reopen_source(plan.config, data_dir)
        news = changed_data(plan.info, source, whole=True)
    except UserError as error:
        return RunData(plan, None, str(error))
    except OSError as error:  # such as a folder of another user
        return RunData(plan, None, f"cannot read {error.filename}: {error.strerror}")
    if news:
        return RunData(plan, None, f"the data is not that of the training: {news}")
    return RunData(plan, source)
