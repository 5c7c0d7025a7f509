"""Reports in a browser: everything is shown, nothing complains, and no page is wider than its window."""

import html
import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from browser import BROWSER
from helpers import plan_of

from jaxresnet.config.schema import Config
from jaxresnet.network.describe import describe
from jaxresnet.plan import Plan
from jaxresnet.reporting.comparison_page import comparison_report
from jaxresnet.reporting.page import Fold, Page, Section, Tile, to_html
from jaxresnet.reporting.sections.evaluation import Evaluated, calibration_section, evaluation_sections
from jaxresnet.reporting.sections.network import network_section
from jaxresnet.runs.groups import History, RunGroup
from jaxresnet.runs.records import EpochRecord, EvaluationRecord
from jaxresnet.runs.workdir import Workdir
from jaxresnet.trained.scores import CalibrationBin

WIDTHS = (390, 1000)
LONG = "a_long_name_without_a_space_" * 5

# Frames of several widths hold the page. A script in the page around them, which the pages themselves do not allow,
# writes what it finds into the title.
MEASURE = """
<!DOCTYPE html><title></title>
%s
<script>
addEventListener("load", () => {
  document.title = JSON.stringify([...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, root = page.documentElement
    page.querySelectorAll("details").forEach(each => each.open = true)
    return {
      page: frame.name,
      width: frame.clientWidth,
      tooWide: root.scrollWidth - root.clientWidth,
      images: page.images.length,
      broken: [...page.images].filter(each => !each.complete || !each.naturalWidth).length,
      boxes: [...page.querySelectorAll(".wide")].filter(each => each.scrollWidth > each.clientWidth).length,
      network: Math.max(0, ...[...page.images].filter(each => each.alt.startsWith("Height"))
        .map(each => each.width / each.naturalWidth)),
    }
  }))
})
</script>
"""


def run_page(plan: Plan) -> Page:
    """The widest parts of a run's page."""
    names = plan.info.class_names
    matrix = np.diag(range(1, len(names) + 1)).tolist()
    record = EvaluationRecord("latest", 20, "test", None, 55, 1.0, 1.0, dict.fromkeys(names, 0.9), matrix)
    wide = Section("Wide", table=[("setting", "here"), (LONG, LONG)], facts=[("command", LONG)])
    return Page(
        LONG,
        tiles=[Tile(LONG, "9", LONG)],
        sections=[
            wide,
            network_section(plan, describe(plan)),
            *evaluation_sections(plan, Evaluated(record)),
            calibration_section([CalibrationBin(1, 0.5, 1.0)] * 15),
            Section("Folded", folds=[Fold(LONG, [(LONG, LONG)], f"x = '{LONG}'")]),
        ],
    )


def comparison_page(plan: Plan) -> Page:
    """A comparison of runs with long names."""
    epochs = [EpochRecord(1, 1, 0.1, 1.0, 0.5, 1.0, 9.0, test_loss=1.0, test_accuracy=0.5)]
    names = (f"{LONG}{number}" for number in range(4))
    return comparison_report(
        [RunGroup(name, [History(Workdir(Path(name)), name, plan, epochs, [])]) for name in names]
    )


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_pages_in_a_browser(tmp_path: Path):
    plan = plan_of(Config())
    frames = ""
    for name, page in (("run", run_page(plan)), ("comparison", comparison_page(plan))):
        (tmp_path / f"{name}.html").write_text(to_html(page), encoding="utf-8")
        frames += "".join(
            f'<iframe name="{name}" src="{name}.html" style="width: {width}px; height: 800px; border: 0"></iframe>'
            for width in WIDTHS
        )
    (tmp_path / "all.html").write_text(MEASURE % frames, encoding="utf-8")
    assert BROWSER
    process = subprocess.run(
        [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"),
            *(
                f"--user-data-dir={tmp_path / 'profile'}",
                "--enable-logging=stderr",
                "--virtual-time-budget=5000",
            ),
            *("--dump-dom", (tmp_path / "all.html").as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert [line for line in process.stderr.splitlines() if ":CONSOLE" in line] == []
    title = re.search("<title>(.*?)</title>", process.stdout)
    assert title
    found = json.loads(html.unescape(title[1]))
    assert [(each["page"], each["width"]) for each in found] == [
        (page, width) for page in ("run", "comparison") for width in WIDTHS
    ]
    assert [each["tooWide"] for each in found] == [0] * 4
    assert [each["images"] for each in found] == [4, 4, 3, 3]
    assert [each["broken"] for each in found] == [0] * 4
    assert found[2]["boxes"] > 0  # the comparison's tables scroll in their boxes
    assert (
        found[0]["network"] > 0.6
    )  # 390 pixels show the network's own narrow drawing, not a shrunken wide one
