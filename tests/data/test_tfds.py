"""Data sets of tensorflow-datasets: what their metadata tells, what is read, and how it is told that one is no use."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets

from jaxresnet.config.schema import Config, DataConfig
from jaxresnet.data.info import known_changes
from jaxresnet.data.sources import open_source, tfds
from jaxresnet.data.splits import load_splits
from jaxresnet.errors import UserError
from jaxresnet.plan import resolve


class Builder(tensorflow_datasets.core.GeneratorBasedBuilder, skip_registration=True):
    """Data sets of grey pictures: number i of a split has the grey value i everywhere and belongs to class i % 2."""

    VERSION = tensorflow_datasets.core.Version("1.0.0")
    SHAPE: tuple[int | None, int | None, int] = (4, 6, 1)
    SPLITS: dict[str, int] = {}  # noqa: RUF012 - a constant of the subclass

    def _info(self) -> Any:
        features = tensorflow_datasets.features
        return tensorflow_datasets.core.DatasetInfo(
            builder=self,
            features=features.FeaturesDict(
                {
                    "picture": features.Image(shape=self.SHAPE),
                    "kind": features.ClassLabel(names=["even", "odd"]),
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(count) for split, count in self.SPLITS.items()}

    def _generate_examples(self, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
        height, width, _ = self.SHAPE
        for i in range(count):
            shape = (height or 4 + i % 3, width or 5, 1)
            yield i, {"picture": np.full(shape, i, np.uint8), "kind": i % 2}


class OwnTest(Builder, skip_registration=True):
    SPLITS = {"train": 30, "test": 4, "validation": 3}  # noqa: RUF012


class Unlabelled(Builder, skip_registration=True):
    SPLITS = {"train": 5, "test": 3}  # noqa: RUF012

    def _generate_examples(self, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Without labels in the test split, as in a competition's data."""
        for key, example in super()._generate_examples(count):
            yield key, example if count == 5 else example | {"kind": -1}


class Alone(Builder, skip_registration=True):
    SPLITS = {"train": 30}  # noqa: RUF012
    SHAPE = (None, None, 1)


class Validated(Builder, skip_registration=True):
    SPLITS = {"train": 5, "validation": 3}  # noqa: RUF012


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with these data sets."""
    root = tmp_path_factory.mktemp("prepared")
    for kind in (OwnTest, Unlabelled, Alone, Validated):
        kind(data_dir=root).download_and_prepare()
    return root


def config_of(name: str, root: Path, **settings: object) -> DataConfig:
    return DataConfig.model_validate({"name": name, "dir": str(root), **settings})


def test_a_data_set_with_a_test_split(root: Path, capsys: pytest.CaptureFixture[str]):
    source = open_source(config_of("own_test", root))
    info = source.info
    assert (info.name, info.image_shape, info.class_names) == ("own_test", (4, 6, 3), ("even", "odd"))
    assert (info.train_examples, info.test_examples) == (30, 4)
    assert info.mean == (14.5 / 255,) * 3
    assert len(info.digest) == 64
    splits = load_splits(source, {"train", "test"})
    values = splits["train"].images[:, 0, 0, 0]
    assert sorted(values) == list(range(30))
    np.testing.assert_array_equal(splits["train"].labels, values % 2)
    assert (splits["train"].images == values[:, None, None, None]).all()
    assert sorted(splits["test"].images[:, 3, 5, 2]) == [0, 1, 2, 3]
    assert "has no test split" not in capsys.readouterr().out
    assert open_source(config_of("own_test", root)).info == info


def test_examples_are_in_the_order_of_the_files(root: Path):
    source = open_source(config_of("own_test", root))
    builder: Any = tensorflow_datasets.builder("own_test", data_dir=root)
    files = builder.as_dataset(split="train", shuffle_files=False)
    expected = [int(each["picture"][0, 0, 0]) for each in tensorflow_datasets.as_numpy(files)]
    assert source.read("train").images[:, 0, 0, 0].tolist() == expected != sorted(expected)


def test_without_a_test_split_a_share_of_each_class_is_held_out(
    root: Path, capsys: pytest.CaptureFixture[str]
):
    source = open_source(config_of("alone", root, image_size=3, test_share=0.4))
    assert (source.outline.train_examples, source.outline.test_examples) == (18, 12)
    assert source.info.image_shape == (3, 3, 3)
    assert known_changes(source.info, source.outline) == ""
    assert capsys.readouterr().out.splitlines() == [
        "alone has no test split: 12 of its 30 examples are held out as one, the same share of each class to "
        "within one example (data.test_share)",
        "reading 30 images as 3 x 3 pixels",
    ]
    splits = load_splits(source, {"train", "test"})
    assert np.bincount(splits["test"].labels).tolist() == [6, 6]
    values = np.concatenate([split.images[:, 1, 1, 1] for split in splits.values()])
    assert sorted(values) == list(range(30))
    with pytest.raises(
        UserError, match=r"^data\.image_size: expected one, as the images of alone differ"
    ) as caught:
        _ = open_source(config_of("alone", root)).outline
    assert caught.value.exit_code == 2


def test_a_validation_split_is_the_next_best(root: Path, capsys: pytest.CaptureFixture[str]):
    source = open_source(config_of("validated", root))
    assert (source.outline.train_examples, source.outline.test_examples) == (5, 3)
    assert source.info.test_examples == 3
    assert known_changes(source.info, source.outline) == ""
    told = "validated has no test split: its validation split is taken as one"
    assert told in capsys.readouterr().out.splitlines()
    assert sorted(source.read("test").images[:, 0, 0, 0]) == [0, 1, 2]


def test_a_split_without_labels_is_told(root: Path):
    source = open_source(config_of("unlabelled", root))
    assert source.read("train").labels.tolist().count(0) == 3
    with pytest.raises(UserError, match=r"^unlabelled, test split, image 1: expected a label, found none$"):
        source.read("test")


def test_a_damaged_file_is_named(root: Path, tmp_path: Path):
    folder = tmp_path / "own_test" / "1.0.0"
    folder.mkdir(parents=True)
    for path in (root / "own_test" / "1.0.0").iterdir():
        content = bytearray(path.read_bytes())
        if "-test." in path.name:
            content[60] ^= 1
        (folder / path.name).write_bytes(content)
    with pytest.raises(
        UserError, match=rf"{tmp_path}/\S*-test\.tfrecord\S*: corrupted record .*; remove {tmp_path}"
    ):
        open_source(config_of("own_test", tmp_path)).read("test")


def test_what_is_known_before_a_download(tmp_path: Path):
    outline = open_source(config_of("cifar100", tmp_path)).outline
    assert (outline.image_shape, outline.classes) == ((32, 32, 3), 100)
    assert resolve(Config(), outline).info == outline
    fashion = config_of("fashion_mnist", tmp_path)
    config = Config().replace({"data.name": "fashion_mnist"})
    with pytest.raises(UserError) as caught:
        resolve(config, open_source(fashion).outline)
    assert str(caught.value) == (
        "model.stage_strides: expected a product that divides the image size 28, found 8; data.image_size 32 would fit"
    )
    assert list(tmp_path.iterdir()) == []


def test_no_network_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    asked: list[str] = []

    def refuse(request: Any, timeout: float) -> None:
        asked.append(request.full_url)
        raise OSError("no route to host")

    monkeypatch.setattr(tfds.urllib.request, "urlopen", refuse)
    with pytest.raises(
        UserError, match=rf"cannot download cifar100 \(no route to host\): .* in {tmp_path}; "
    ):
        _ = open_source(config_of("cifar100", tmp_path)).info
    assert asked == ["https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"]
    assert capsys.readouterr().out == (
        f"cifar100 is not in {tmp_path}: downloading up to 161 MiB and preparing it there\n"
    )


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("cifar1000", "expected cifar10, digits, folder or an image data set of tensorflow-datasets, such as cifar100, "
        "found 'cifar1000'; did you mean cifar100?"),
        ("huggingface:mnist", "expected cifar10, digits, folder or an image data set of tensorflow-datasets, such as "
        "cifar100, found 'huggingface:mnist'"),
        ("mnist/large", "tensorflow-datasets cannot open 'mnist/large': "),
        ("titanic", "expected a data set with one image of 8 bits and one label, found titanic with pclass "),
    ],
)  # fmt: skip
def test_a_name_that_is_no_use_is_told_in_one_line(tmp_path: Path, name: str, problem: str):
    with pytest.raises(UserError) as caught:
        _ = open_source(config_of(name, tmp_path)).outline
    assert str(caught.value).startswith(f"data.name: {problem}")
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.exit_code == 2
